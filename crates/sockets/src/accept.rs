//! Connections as they are accepted: watched by nobody yet.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use nix::sys::socket::SockFlag;
use socket2::SockRef;

/// The next connection that waits at `listener`, and whose it is. It does not block, and belongs
/// to no runtime: who is to serve it may have to find out first, and to tell two runtimes of it
/// would cost more than all the rest of finding out.
///
/// # Errors
///
/// `WouldBlock` when none waits; else the kernel's.
pub fn accept_now(listener: &impl AsFd) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (socket, from) = SockRef::from(listener).accept4(flags.bits())?;
    let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket.into(), from))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_waits_is_accepted_and_neither_call_blocks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let none = accept_now(&listener);
        assert_eq!(none.unwrap_err().kind(), ErrorKind::WouldBlock);
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, from) = accept_now(&listener).unwrap();
        assert_eq!(from, near.local_addr().unwrap());
        let nothing = far.read(&mut [0]);
        assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

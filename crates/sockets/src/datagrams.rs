//! Datagrams of connected sockets, now or not at all.

use std::io::{self, Read};
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Waits until [`receive_now`] has something to tell. Tokio does not count a refusal by the
/// endpoint as readable.
///
/// # Errors
///
/// When the runtime is shutting down.
pub async fn await_datagram(socket: &UdpSocket) -> io::Result<()> {
    let either = Interest::READABLE.add(Interest::ERROR);
    socket.ready(either).await.map(|_| ())
}

/// The next datagram of a connected socket, or what became of an earlier one that was sent.
///
/// # Errors
///
/// `WouldBlock` when there is nothing; else what the kernel tells of an earlier datagram.
pub fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    // One at a time: tokio's `try_io` knows no two interests at once.
    let mut read = |interest| socket.try_io(interest, || (&*SockRef::from(socket)).read(buffer));
    match read(Interest::READABLE) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => read(Interest::ERROR),
        read => read,
    }
}

/// Sends a datagram on a connected socket, now or not at all. (Tokio's own `try_send` does not
/// even try on a socket whose readiness has not been reported yet, as a new one's.)
///
/// # Errors
///
/// `WouldBlock` when the socket's buffer is full; else the kernel's word on this datagram or
/// on an earlier one.
pub fn send_now(socket: &UdpSocket, datagram: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send(datagram)
}

/// As [`send_now`], to an address.
///
/// # Errors
///
/// As [`send_now`].
pub fn send_to_now(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
    SockRef::from(socket).send_to(datagram, &to.into())
}

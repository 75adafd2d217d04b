//! Bytes that are sent on before they are taken from the socket that has received them.

use std::io;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::TcpStream;

use crate::buffers::StreamBuffer;

/// What `stream` has received, `most` bytes at most; it stays there. None before the first byte,
/// at the end of the stream, and when it is broken. Does not wait.
#[must_use]
pub fn look_at(stream: &TcpStream, most: usize) -> Option<Bytes> {
    let mut buffer = StreamBuffer::lend();
    let most = most.min(buffer.len());
    let seen = receive(stream, &mut buffer[..most], MsgFlags::MSG_PEEK);
    seen.ok()
        .filter(|seen| *seen > 0)
        .map(|seen| Bytes::copy_from_slice(&buffer[..seen]))
}

/// Takes so many bytes from `stream`, that were seen by [`look_at`].
///
/// # Errors
///
/// When they are not there any more: the stream is broken.
pub fn take_seen(stream: &TcpStream, mut count: usize) -> io::Result<()> {
    let mut buffer = StreamBuffer::lend();
    while count > 0 {
        let most = count.min(buffer.len());
        match receive(stream, &mut buffer[..most], MsgFlags::empty())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => count -= taken,
        }
    }
    Ok(())
}

/// By the kernel, not by the runtime: that may not have heard yet that there is something to
/// read, and would say that there is nothing.
fn receive(stream: &TcpStream, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    loop {
        match recv(stream.as_raw_fd(), buffer, flags | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            received => return received.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::ResetOnDrop;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_was_seen_is_still_there_until_it_is_taken() {
        let (mut near, mut far) = pair().await;
        assert_eq!(look_at(&far, 100), None);
        near.write_all(b"first and more").await.unwrap();
        far.readable().await.unwrap();
        for _ in 0..2 {
            assert_eq!(look_at(&far, 5).unwrap(), "first");
            assert_eq!(look_at(&far, 100).unwrap(), "first and more");
        }
        take_seen(&far, 5).unwrap();
        near.shutdown().await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b" and more");
        assert_eq!(look_at(&far, 100), None);
    }

    #[tokio::test]
    async fn a_reset_takes_nothing_that_was_seen_for_the_end_of_the_stream() {
        let (mut near, far) = pair().await;
        near.write_all(b"seen").await.unwrap();
        far.readable().await.unwrap();
        assert_eq!(look_at(&far, 100).unwrap(), "seen");
        drop(ResetOnDrop::new(near));
        crate::broken(&far).await;
        // Linux keeps what was received; what is beyond it is an error, never an end.
        let _ = take_seen(&far, 4);
        assert!(take_seen(&far, 1).is_err());
    }
}

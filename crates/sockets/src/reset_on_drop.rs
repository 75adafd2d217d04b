//! Streams whose end tells the truth: in order, or reset.

use std::io::{self, IoSlice};
use std::net::{self, Shutdown};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// More follows at once (send(2)).
const MSG_MORE: i32 = 0x8000;

/// A stream that is reset when it is dropped, unless it was closed in order: whatever goes
/// wrong, a truncated transfer never looks like a whole one.
#[derive(Debug)]
pub struct ResetOnDrop {
    stream: TcpStream,
    in_order: bool,
}

impl ResetOnDrop {
    /// Takes charge of how `stream` ends.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            in_order: false,
        }
    }

    /// The stream itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Closes it as it stands: both sides have ended their part.
    pub fn close_in_order(mut self) {
        self.in_order = true;
    }

    /// The stream itself, for [`watch_here`].
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

/// Makes a stream that no runtime watches yet be reset when it is closed, should this be dropped
/// before [`ResetUnlessKept::keep`].
#[derive(Debug)]
pub struct ResetUnlessKept<'s> {
    stream: &'s net::TcpStream,
    is_kept: bool,
}

impl<'s> ResetUnlessKept<'s> {
    /// Takes charge of how `stream` ends, for now.
    #[must_use]
    pub fn new(stream: &'s net::TcpStream) -> Self {
        Self {
            stream,
            is_kept: false,
        }
    }

    /// Somebody else takes charge.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for ResetUnlessKept<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            reset_on_close(self.stream);
        }
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if !self.in_order {
            reset_on_close(&self.stream);
        }
    }
}

/// Makes closing `stream` reset the connection.
fn reset_on_close(stream: &impl AsFd) {
    // It can only fail on a socket that has no connection any more.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Has the runtime that this is called in watch `stream`, instead of the one that did.
///
/// # Errors
///
/// When the process has no descriptor left for the moment in which it has two, or the kernel
/// takes no more to watch. It is watched as before then: nothing is lost, but each call of it goes
/// from runtime to runtime.
pub fn watch_here(stream: &mut TcpStream) -> io::Result<()> {
    let other = stream.as_fd().try_clone_to_owned()?;
    // That closes the first of the two only.
    *stream = TcpStream::from_std(other.into())?;
    Ok(())
}

/// Ends the stream towards the other side (FIN) and leaves the other way open.
///
/// # Errors
///
/// When the connection is broken.
pub fn end_stream(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Writes what is followed by [`end_stream`] at once, or by closing: the kernel keeps it back
/// for the end to go in the same packet. Does not wait.
///
/// # Errors
///
/// `WouldBlock` when the stream takes nothing now; else its own.
pub fn send_last(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.try_io(Interest::WRITABLE, || {
        SockRef::from(stream).send_with_flags(bytes, MSG_MORE)
    })
}

/// The same for bytes in several pieces.
///
/// # Errors
///
/// See [`send_last`].
pub fn send_last_pieces(stream: &TcpStream, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.try_io(Interest::WRITABLE, || {
        SockRef::from(stream).send_vectored_with_flags(pieces, MSG_MORE)
    })
}

/// Waits until the connection is broken (reset, timed out), whatever data may still be
/// unread, and tells by what.
pub async fn broken(stream: &TcpStream) -> io::Error {
    if let Err(error) = stream.ready(Interest::ERROR).await {
        return error;
    }
    match stream.take_error() {
        Ok(Some(error)) | Err(error) => error,
        // A write has taken the error; the connection is no better for it.
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}

//! Moves one direction of a connection from socket to socket.

use std::future::poll_fn;
use std::io::{self, Read, Write};

use edgemesh_sockets::{LentPipe, PipePool, StreamBuffer, broken, send_last};
use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use crate::connection_end::{Broken, End, Side};
use crate::gait::Gait;

/// What a run of moves ended with.
enum Pause {
    /// Nothing more is there for now.
    Empty,
    /// The stream has ended, and all of it is passed on.
    End,
    /// There may be more to move, by whichever gait.
    None,
}

/// One direction of a connection.
pub(crate) struct Pump<'a, F> {
    pub(crate) from: End<'a>,
    pub(crate) to: End<'a>,
    pub(crate) pipes: &'a PipePool,
    /// Told of all that `to` has taken.
    pub(crate) moved: F,
}

// All of it borrows the pump: an argument of an async function stays in its future for good,
// twice, and an idle connection consists of these futures.
impl<F: Fn(usize)> Pump<'_, F> {
    /// Moves bytes until `from` ends its stream. What it moves with is lent only while there
    /// are bytes to move.
    ///
    /// The last bytes may still be on their way then: they leave with the end of the stream,
    /// which is to be passed on at once.
    pub(crate) async fn run(&self) -> Result<(), Broken> {
        let mut gait = Gait::default();
        // What the client brought with it goes without the runtime, which has yet to learn of it.
        let mut pause = match self.from.side {
            Side::Client => self.open(&mut gait).await?,
            Side::Endpoint => Pause::Empty,
        };
        loop {
            match pause {
                Pause::Empty => {
                    let readable = poll_fn(|cx| self.from.stream.poll_read_ready(cx)).await;
                    readable.map_err(|error| self.from.broken(error))?;
                }
                Pause::End => return Ok(()),
                Pause::None => {}
            }
            let pipe = if gait.splices() {
                self.pipes.lend()
            } else {
                None
            };
            pause = match pipe {
                Some(pipe) => self.splice(pipe, &mut gait).await?,
                None => self.copy(&mut gait).await?,
            };
        }
    }

    /// Passes on what was said before anybody listened.
    async fn open(&self, gait: &mut Gait) -> Result<Pause, Broken> {
        let mut buffer = StreamBuffer::lend();
        let n = match (&*SockRef::from(self.from.stream)).read(&mut buffer) {
            Ok(0) => return Ok(Pause::End),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pause::Empty),
            Err(error) => return Err(self.from.broken(error)),
        };
        let sent = match (&*SockRef::from(self.to.stream)).write(&buffer[..n]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(self.to.broken(error)),
        };
        (self.moved)(sent);
        self.write_all(&buffer[sent..n], Follows::Perhaps).await?;
        let filled = n == buffer.len();
        gait.copied(filled);
        Ok(if filled { Pause::None } else { Pause::Empty })
    }

    async fn splice(&self, mut pipe: LentPipe<'_>, gait: &mut Gait) -> Result<Pause, Broken> {
        loop {
            match pipe.fill(self.from.stream) {
                Ok(0) => return Ok(Pause::End),
                Ok(n) => {
                    self.drain(&mut pipe).await?;
                    gait.spliced(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pause::Empty),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => gait.cannot_splice(),
                Err(error) => return Err(self.from.broken(error)),
            }
            if !gait.splices() {
                return Ok(Pause::None);
            }
            // A stream that never pauses must leave the worker to others now and then.
            consume_budget().await;
        }
    }

    async fn drain(&self, pipe: &mut LentPipe<'_>) -> Result<(), Broken> {
        while pipe.holds() > 0 {
            match pipe.drain(self.to.stream) {
                Ok(0) => return Err(self.to.broken(io::ErrorKind::WriteZero.into())),
                Ok(n) => (self.moved)(n),
                Err(error) => self.wait_after(error).await?,
            }
        }
        Ok(())
    }

    async fn copy(&self, gait: &mut Gait) -> Result<Pause, Broken> {
        let mut buffer = StreamBuffer::lend();
        loop {
            let (n, follows) = match read(self.from.stream, &mut buffer) {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(Pause::Empty),
                Err(error) => return Err(self.from.broken(error)),
            };
            self.write_all(&buffer[..n], follows).await?;
            let filled = n == buffer.len();
            gait.copied(filled);
            match follows {
                Follows::End => return Ok(Pause::End),
                Follows::Perhaps if !filled => return Ok(Pause::Empty),
                Follows::Perhaps if gait.splices() => return Ok(Pause::None),
                Follows::Perhaps => consume_budget().await,
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8], follows: Follows) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let sent = match follows {
                Follows::End => send_last(self.to.stream, bytes),
                Follows::Perhaps => self.to.stream.try_write(bytes),
            };
            match sent {
                Ok(n) => {
                    bytes = &bytes[n..];
                    (self.moved)(n);
                }
                Err(error) => self.wait_after(error).await?,
            }
        }
        Ok(())
    }

    /// Waits until `to` takes bytes again, when that is what `error` says.
    async fn wait_after(&self, error: io::Error) -> Result<(), Broken> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(self.to.broken(error));
        }
        drop(error);
        tokio::select! {
            biased;
            // Nobody reads `from` while we wait, so its reset has to be watched for.
            error = broken(self.from.stream) => Err(self.from.broken(error)),
            ready = poll_fn(|cx| self.to.stream.poll_write_ready(cx)) => {
                ready.map_err(|error| self.to.broken(error))
            }
        }
    }
}

/// What follows on bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Perhaps,
    /// The end of the stream.
    End,
}

/// Reads what is there, and tells what follows; none when nothing is there. What does not fill
/// the buffer is all there is, which spares the read that would say so: the next one waits until
/// the kernel tells of more. Only where the kernel has told of the stream's end, that is read,
/// too, so that it can be passed on with the last bytes.
fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<(usize, Follows)>> {
    let end_is_known = is_end_known(stream);
    let Some(mut n) = read_once(stream, buffer)? else {
        return Ok(None);
    };
    if n == 0 {
        return Ok(Some((0, Follows::End)));
    }
    while end_is_known && n < buffer.len() {
        match (&*SockRef::from(stream)).read(&mut buffer[n..]) {
            Ok(0) => return Ok(Some((n, Follows::End))),
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Some((n, Follows::Perhaps)))
}

/// Whether the runtime knows already that the stream has ended; asks nobody.
fn is_end_known(stream: &TcpStream) -> bool {
    let ready = stream.ready(Interest::READABLE).now_or_never();
    matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
}

fn read_once(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut all_there_is = None;
    let read = stream.try_io(Interest::READABLE, || {
        let n = (&*SockRef::from(stream)).read(buffer)?;
        if 0 < n && n < buffer.len() {
            all_there_is = Some(n);
            // Makes the runtime forget that the stream is readable, unless the kernel has told
            // it so again since this call began; that it has ended is never forgotten.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    match read {
        Ok(n) => Ok(Some(n)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(all_there_is),
        Err(error) => Err(error),
    }
}

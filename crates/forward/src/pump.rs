//! Moves one direction of a connection from socket to socket.

use std::io::{self, Read};

use edgemesh_sockets::{LentPipe, PipePool, StreamBuffer, broken};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use crate::gait::Gait;
use crate::relay::{Broken, Side};

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) stream: &'a TcpStream,
    pub(crate) side: Side,
}

impl End<'_> {
    pub(crate) fn broken(self, error: io::Error) -> Broken {
        Broken {
            side: self.side,
            error,
        }
    }
}

/// What a run of moves ended with.
enum Pause {
    /// Nothing more is there for now.
    Empty,
    /// The stream has ended, and all of it is passed on.
    End,
    /// It goes on by the other gait.
    ChangeOfGait,
}

/// Moves bytes until `from` ends its stream. What it moves with is lent only while there are
/// bytes to move; `moved` is told of all that `to` has taken.
pub(crate) async fn pump(
    from: End<'_>,
    to: End<'_>,
    pipes: &PipePool,
    moved: impl Fn(usize),
) -> Result<(), Broken> {
    let mut gait = Gait::default();
    loop {
        let readable = from.stream.readable().await;
        readable.map_err(|error| from.broken(error))?;
        loop {
            let pipe = if gait.splices() { pipes.lend() } else { None };
            let pause = match pipe {
                Some(pipe) => splice(from, to, pipe, &mut gait, &moved).await?,
                None => copy(from, to, &mut gait, &moved).await?,
            };
            match pause {
                Pause::Empty => break,
                Pause::End => return Ok(()),
                Pause::ChangeOfGait => {}
            }
        }
    }
}

async fn splice(
    from: End<'_>,
    to: End<'_>,
    mut pipe: LentPipe<'_>,
    gait: &mut Gait,
    moved: &impl Fn(usize),
) -> Result<Pause, Broken> {
    loop {
        match pipe.fill(from.stream) {
            Ok(0) => return Ok(Pause::End),
            Ok(n) => {
                drain(&mut pipe, from, to, moved).await?;
                gait.spliced(n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pause::Empty),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => gait.cannot_splice(),
            Err(error) => return Err(from.broken(error)),
        }
        if !gait.splices() {
            return Ok(Pause::ChangeOfGait);
        }
        // A stream that never pauses must leave the worker to others now and then.
        consume_budget().await;
    }
}

async fn drain(
    pipe: &mut LentPipe<'_>,
    from: End<'_>,
    to: End<'_>,
    moved: &impl Fn(usize),
) -> Result<(), Broken> {
    while pipe.holds() > 0 {
        match pipe.drain(to.stream) {
            Ok(0) => return Err(to.broken(io::ErrorKind::WriteZero.into())),
            Ok(n) => moved(n),
            Err(error) => wait_after(error, from, to).await?,
        }
    }
    Ok(())
}

async fn copy(
    from: End<'_>,
    to: End<'_>,
    gait: &mut Gait,
    moved: &impl Fn(usize),
) -> Result<Pause, Broken> {
    let mut buffer = StreamBuffer::lend();
    loop {
        match read(from.stream, &mut buffer) {
            Ok(Some(0)) => return Ok(Pause::End),
            Ok(Some(n)) => {
                let filled = n == buffer.len();
                write_all(&buffer[..n], from, to, moved).await?;
                gait.copied(filled);
                if !filled {
                    return Ok(Pause::Empty);
                }
                if gait.splices() {
                    return Ok(Pause::ChangeOfGait);
                }
            }
            Ok(None) => return Ok(Pause::Empty),
            Err(error) => return Err(from.broken(error)),
        }
        consume_budget().await;
    }
}

/// Reads what is there; none when nothing is. What does not fill the buffer is all there is,
/// which spares the read that would say so: the next one waits until the kernel tells of more.
fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
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

async fn write_all(
    mut bytes: &[u8],
    from: End<'_>,
    to: End<'_>,
    moved: &impl Fn(usize),
) -> Result<(), Broken> {
    while !bytes.is_empty() {
        match to.stream.try_write(bytes) {
            Ok(n) => {
                bytes = &bytes[n..];
                moved(n);
            }
            Err(error) => wait_after(error, from, to).await?,
        }
    }
    Ok(())
}

/// Waits until `to` takes bytes again, when that is what `error` says.
async fn wait_after(error: io::Error, from: End<'_>, to: End<'_>) -> Result<(), Broken> {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(to.broken(error));
    }
    tokio::select! {
        biased;
        // Nobody reads `from` while we wait, so its reset has to be watched for.
        error = broken(from.stream) => Err(from.broken(error)),
        ready = to.stream.writable() => ready.map_err(|error| to.broken(error)),
    }
}

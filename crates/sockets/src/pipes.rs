//! Pipes that streams are spliced through: lent while data moves, a bounded number for all.
//!
//! splice(2) moves references to the kernel's pages from one socket into a pipe and from
//! there into another socket, so that the bytes are never copied to this process and back.
//! A pipe takes two descriptors and, for its ring, some KiB of the kernel's memory; what it
//! may hold at most is charged to the user (pipe(7), "/proc/sys/fs/pipe-user-pages-soft").
//! So there are few, each is asked for in the largest size and taken in the size that is
//! granted, and whoever gets none copies.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Asked for first: what an unprivileged process may have (`fs.pipe-max-size`'s default).
const LARGEST: usize = 1 << 20;
/// Less than that is not worth it: the kernel's default, below which it goes for users that
/// have too many.
const SMALLEST: usize = 64 * 1024;
/// How long nobody asks the kernel again after it had no pipe to give.
const BACK_OFF: Duration = Duration::from_secs(1);

/// All pipes of the process.
pub struct PipePool {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Pipe>,
    /// Those that are idle and those that are lent.
    open: usize,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

/// A pipe on loan; goes back when it is dropped, unless data is left in it: then it is closed,
/// for the next borrower must not meet the data of another.
pub struct LentPipe<'a> {
    pool: &'a PipePool,
    /// None only while it is being dropped.
    pipe: Option<Pipe>,
    holds: usize,
}

impl PipePool {
    /// A pool of at most `most` pipes, that is twice as many descriptors. None is opened
    /// before somebody needs it.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// A pipe that is empty; none when all are lent, or when the kernel gives none.
    pub fn lend(&self) -> Option<LentPipe<'_>> {
        let mut state = self.state();
        let pipe = match state.idle.pop() {
            Some(pipe) => pipe,
            None => {
                if state.open >= self.most || state.is_backing_off() {
                    return None;
                }
                // Made under the lock: it takes microseconds, and happens once for each.
                let Ok(pipe) = Pipe::open() else {
                    state.not_before = Some(Instant::now() + BACK_OFF);
                    return None;
                };
                state.open += 1;
                pipe
            }
        };
        Some(LentPipe {
            pool: self,
            pipe: Some(pipe),
            holds: 0,
        })
    }

    /// Pipes that exist now, lent or not.
    #[must_use]
    pub fn open(&self) -> usize {
        self.state().open
    }

    fn take_back(&self, pipe: Pipe, holds: usize) {
        let mut state = self.state();
        if holds == 0 {
            state.idle.push(pipe);
        } else {
            state.open -= 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_backing_off(&self) -> bool {
        self.not_before.is_some_and(|until| Instant::now() < until)
    }
}

impl fmt::Debug for PipePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipePool")
            .field("most", &self.most)
            .field("open", &self.open())
            .finish()
    }
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let mut size = LARGEST;
        let capacity = loop {
            match fcntl(&write, FcntlArg::F_SETPIPE_SZ(c_int(size))) {
                Ok(granted) => break usize::try_from(granted).unwrap_or(0),
                // Above a limit (EPERM), or no memory for it: less may do.
                Err(_) if size > SMALLEST => size /= 2,
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Self {
            read,
            write,
            capacity,
        })
    }
}

fn c_int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

impl LentPipe<'_> {
    /// Bytes in the pipe.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.holds
    }

    /// Fills an empty pipe from `stream` with what is there, up to its capacity. As with a
    /// read, 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing is there; `InvalidInput` when this stream can't be spliced,
    /// or when the pipe is not empty (the kernel could not tell a full pipe from a silent
    /// stream); else the stream's own.
    pub fn fill(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let (Some(pipe), 0) = (&self.pipe, self.holds) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let moved = stream.try_io(Interest::READABLE, || {
            Ok(splice(
                stream,
                None,
                &pipe.write,
                None,
                pipe.capacity,
                SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK,
            )?)
        })?;
        self.holds = moved;
        Ok(moved)
    }

    /// Moves what the pipe holds to `stream`, as much as it takes now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when it takes nothing; else the stream's own. (On a broken stream the kernel
    /// also sends SIGPIPE, which Rust programs ignore from their start.)
    pub fn drain(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Ok(0);
        };
        let moved = stream.try_io(Interest::WRITABLE, || {
            Ok(splice(
                &pipe.read,
                None,
                stream,
                None,
                self.holds,
                SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK,
            )?)
        })?;
        self.holds -= moved.min(self.holds);
        Ok(moved)
    }
}

impl Drop for LentPipe<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pool.take_back(pipe, self.holds);
        }
    }
}

impl fmt::Debug for LentPipe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentPipe")
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        (near.await.unwrap(), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_move_from_stream_to_stream_and_then_their_end() {
        let (mut source, from) = pair().await;
        let (to, mut destination) = pair().await;
        let pool = PipePool::new(1);
        let mut pipe = pool.lend().unwrap();
        let nothing = pipe.fill(&from).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

        source.write_all(b"hello").await.unwrap();
        from.readable().await.unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 5);
        let not_empty = pipe.fill(&from).unwrap_err();
        assert_eq!(not_empty.kind(), ErrorKind::InvalidInput);
        to.writable().await.unwrap();
        assert_eq!(pipe.drain(&to).unwrap(), 5);
        assert_eq!(pipe.holds(), 0);
        let mut got = [0; 5];
        destination.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");

        source.shutdown().await.unwrap();
        from.readable().await.unwrap();
        let ended = loop {
            match pipe.fill(&from) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    from.readable().await.unwrap();
                }
                other => break other,
            }
        };
        assert_eq!(ended.unwrap(), 0);
    }

    #[test]
    fn no_more_than_allowed_are_lent_and_those_given_back_are_lent_again() {
        let pool = PipePool::new(2);
        let (first, second) = (pool.lend(), pool.lend());
        assert!(first.is_some() && second.is_some());
        assert!(pool.lend().is_none());
        drop(first);
        assert!(pool.lend().is_some());
        assert_eq!(pool.open(), 2);
        assert!(PipePool::new(0).lend().is_none());
    }

    #[tokio::test]
    async fn a_pipe_with_data_left_in_it_is_never_lent_again() {
        let (mut source, from) = pair().await;
        let pool = PipePool::new(1);
        let mut pipe = pool.lend().unwrap();
        source.write_all(b"a secret").await.unwrap();
        from.readable().await.unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 8);
        drop(pipe);
        assert_eq!(pool.open(), 0);
        assert_eq!(pool.lend().unwrap().holds(), 0);
    }

    #[test]
    fn after_a_failure_the_kernel_is_left_in_peace_for_a_while() {
        let pool = PipePool::new(1);
        pool.state().not_before = Some(Instant::now() + BACK_OFF);
        assert!(pool.lend().is_none());
        pool.state().not_before = Some(Instant::now());
        assert!(pool.lend().is_some());
    }
}

//! The receiving direction of a stream: read in order, until a gap in it stays; from then on as
//! it comes.
//!
//! In order, many pieces are taken at once and none is copied. But behind a lost packet nothing
//! can be read for a round trip and more, and what the sender may have under way ends at the
//! stream's window. On long paths with loss that is what holds it up. As it comes, a stream is
//! read beyond the gap ([`crate::read_ahead`]), which gives the sender room for more, and the
//! transport drops at once what came twice. There is no way back (noq 1.4).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use iroh::endpoint::{
    ReadError, ReadExactError, RecvStream, ResetError, UnorderedRecvStream, VarInt,
};
use noq::Chunk;

use crate::read_ahead::{BytesAhead, OutOfBounds, PIECE, ReadAhead};

/// How long a gap has to stay. For so long the window holds up nothing below 1.8 Gbit/s.
const STAYS: Duration = Duration::from_millis(5);
/// Bytes before which no gap is looked for: what is less than a window needs no more.
const LITTLE: u64 = 512 * 1024;
/// Bytes of a run at most, where a piece may be more than a packet's.
const RUN: usize = 64 * 1024;

/// The receiving direction of a stream.
#[derive(Debug)]
pub(crate) struct Inflow {
    source: Source,
    /// Bytes that were read by [`Inflow::poll_piece`] and [`Inflow::poll_run`] in order.
    read: u64,
    /// Where bytes behind a gap are counted; none while it has to be read in order.
    ahead: Option<BytesAhead>,
    /// Boxed: most streams are short.
    watch: Option<Box<GapWatch>>,
}

#[derive(Debug)]
enum Source {
    InOrder(RecvStream),
    AsItComes(Box<AsItComes>),
    /// On its way from the one to the other.
    Neither,
}

#[derive(Debug)]
struct AsItComes {
    stream: UnorderedRecvStream,
    ahead: ReadAhead,
}

impl Inflow {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            source: Source::InOrder(stream),
            read: 0,
            ahead: None,
            watch: None,
        }
    }

    /// From now on it is read by pieces only, and beyond gaps where these stay.
    pub(crate) fn may_be_read_ahead(&mut self, all: &BytesAhead) {
        self.ahead.get_or_insert_with(|| all.clone());
    }

    /// See [`RecvStream::read_exact`]. Only before [`Inflow::may_be_read_ahead`].
    pub(crate) async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ReadExactError> {
        self.in_order()?.read_exact(buffer).await
    }

    /// See [`RecvStream::read`]. Only before [`Inflow::may_be_read_ahead`].
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, ReadError> {
        self.in_order()?.read(buffer).await
    }

    /// See [`RecvStream::received_reset`].
    pub(crate) async fn received_reset(&mut self) -> Result<Option<VarInt>, ResetError> {
        match &mut self.source {
            Source::InOrder(stream) => stream.received_reset().await,
            Source::AsItComes(source) => source.stream.received_reset().await,
            Source::Neither => Ok(None),
        }
    }

    /// See [`RecvStream::stop`]; that it has ended is no error.
    pub(crate) fn stop(&mut self, code: VarInt) {
        let _ = match &mut self.source {
            Source::InOrder(stream) => stream.stop(code),
            Source::AsItComes(source) => source.stream.stop(code),
            Source::Neither => Ok(()),
        };
    }

    /// The next bytes, `most` at most; none at the end.
    ///
    /// # Errors
    ///
    /// When the stream is broken. It is not to be read any more then.
    pub(crate) async fn piece(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_piece(cx, most)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Option<Bytes>>> {
        let polled = self.poll_in_order(cx, |stream, cx| pin!(stream.read_chunk(most)).poll(cx));
        if let Some(read) = polled {
            let read = ready!(read)?;
            self.count(read.as_ref().map_or(0, Bytes::len));
            return Poll::Ready(Ok(read));
        }
        match &mut self.source {
            Source::AsItComes(source) => source.poll_piece(cx, most),
            Source::InOrder(_) | Source::Neither => Poll::Ready(Err(lost())),
        }
    }

    /// The next bytes in as many pieces as `run` has room for, and at least one; how many, and
    /// 0 at the end.
    ///
    /// # Errors
    ///
    /// When the stream is broken. It is not to be read any more then.
    pub(crate) fn poll_run(
        &mut self,
        cx: &mut Context<'_>,
        run: &mut [Bytes],
    ) -> Poll<io::Result<usize>> {
        let polled =
            self.poll_in_order(cx, |stream, cx| pin!(stream.read_many_chunks(run)).poll(cx));
        if let Some(read) = polled {
            let count = ready!(read)?.unwrap_or(0);
            self.count(run[..count].iter().map(Bytes::len).sum());
            return Poll::Ready(Ok(count));
        }
        match &mut self.source {
            Source::AsItComes(source) => source.poll_run(cx, run),
            Source::InOrder(_) | Source::Neither => Poll::Ready(Err(lost())),
        }
    }

    /// Reads in order; none when it is not, or no longer, read so.
    fn poll_in_order<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut RecvStream, &mut Context<'_>) -> Poll<Result<T, ReadError>>,
    ) -> Option<Poll<Result<T, ReadError>>> {
        let Source::InOrder(stream) = &mut self.source else {
            return None;
        };
        let Some(watch) = &mut self.watch else {
            return Some(read(stream, cx));
        };
        let arrived = watch.arrived_for(cx.waker());
        let polled = read(stream, &mut Context::from_waker(&watch.waker));
        let stays = watch.stays(polled.is_ready(), arrived, Instant::now);
        if !stays || !self.leave_order() {
            return Some(polled);
        }
        None
    }

    /// Whether it is read as it comes from now on.
    fn leave_order(&mut self) -> bool {
        self.source = match std::mem::replace(&mut self.source, Source::Neither) {
            Source::InOrder(stream) => match (stream.bytes_read(), self.ahead.take()) {
                (Ok(at), Some(all)) => Source::AsItComes(Box::new(AsItComes {
                    stream: stream.into_unordered(),
                    ahead: ReadAhead::new(at, all),
                })),
                _ => Source::InOrder(stream),
            },
            other => other,
        };
        self.watch = None;
        matches!(self.source, Source::AsItComes(_))
    }

    fn count(&mut self, bytes: usize) {
        self.read += bytes as u64;
        if self.watch.is_none() && self.read >= LITTLE && self.ahead.is_some() {
            self.watch = Some(Box::new(GapWatch::new()));
        }
    }

    fn in_order(&mut self) -> Result<&mut RecvStream, ReadError> {
        match &mut self.source {
            Source::InOrder(stream) => Ok(stream),
            Source::AsItComes(_) | Source::Neither => Err(ReadError::ClosedStream),
        }
    }
}

impl AsItComes {
    fn poll_piece(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(bytes) = self.ahead.take(most) {
                return Poll::Ready(Ok(Some(bytes)));
            }
            let Some(mut chunk) = ready!(self.poll_chunk(cx))? else {
                let ended = self.ahead.is_empty().then_some(None);
                return Poll::Ready(ended.ok_or_else(lost));
            };
            if chunk.offset != self.ahead.at() {
                self.ahead
                    .put(chunk.offset, &chunk.bytes)
                    .map_err(offence)?;
                continue;
            }
            // In order: it is not copied.
            let rest = chunk.bytes.split_off(most.min(chunk.bytes.len()));
            self.ahead.pass(chunk.bytes.len());
            let at = self.ahead.at();
            self.ahead.put(at, &rest).map_err(offence)?;
            return Poll::Ready(Ok(Some(chunk.bytes)));
        }
    }

    fn poll_run(&mut self, cx: &mut Context<'_>, run: &mut [Bytes]) -> Poll<io::Result<usize>> {
        let (mut count, mut bytes) = (0, 0);
        while count < run.len() && bytes < RUN {
            match self.poll_piece(cx, RUN - bytes) {
                Poll::Ready(Ok(Some(piece))) => {
                    bytes += piece.len();
                    run[count] = piece;
                    count += 1;
                }
                Poll::Ready(Ok(None)) => break,
                // It is told once only.
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(count))
    }

    /// What is to be read next, wherever it is, as long as there is room for it; else what
    /// fills the gap.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, ReadError>> {
        let room = self.ahead.room();
        if room > 0 {
            return pin!(self.stream.read_chunk(room)).poll(cx);
        }
        if !ready!(self.poll_fills_gap(cx))? {
            // Where something can be read, only this tells of what arrives next.
            if let Poll::Ready(reset) = pin!(self.stream.received_reset()).poll(cx) {
                let error =
                    reset.map(|code| code.map_or(ReadError::ClosedStream, ReadError::Reset));
                return Poll::Ready(Err(error.unwrap_or_else(ReadError::from)));
            }
            if !ready!(self.poll_fills_gap(cx))? {
                return Poll::Pending;
            }
        }
        pin!(self.stream.read_chunk(PIECE)).poll(cx)
    }

    /// Whether what comes first of all that can be read is what is missed. A read of no bytes
    /// tells (noq 1.4, `Assembler::read`).
    fn poll_fills_gap(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ReadError>> {
        let first = ready!(pin!(self.stream.read_chunk(0)).poll(cx))?;
        Poll::Ready(Ok(first.is_none_or(|first| first.offset <= self.ahead.at())))
    }
}

/// Looks for a gap that stays.
#[derive(Debug)]
struct GapWatch {
    arrival: Arc<Arrival>,
    waker: Waker,
    /// Since when nothing that arrives can be read.
    since: Option<Instant>,
}

/// Tells being woken by what arrives from being woken by others.
#[derive(Debug, Default)]
struct Arrival {
    arrived: AtomicBool,
    task: AtomicWaker,
}

impl GapWatch {
    fn new() -> Self {
        let arrival = Arc::<Arrival>::default();
        Self {
            waker: Waker::from(Arc::clone(&arrival)),
            arrival,
            since: None,
        }
    }

    /// Whether something arrived; wakes `task` from now on.
    fn arrived_for(&self, task: &Waker) -> bool {
        self.arrival.task.register(task);
        self.arrival.arrived.swap(false, Ordering::AcqRel)
    }

    /// Whether there is a gap for so long: when something `arrived`, and still there is nothing
    /// `to_read`.
    fn stays(&mut self, to_read: bool, arrived: bool, now: impl FnOnce() -> Instant) -> bool {
        if to_read {
            self.since = None;
        } else if arrived {
            let now = now();
            return now.saturating_duration_since(*self.since.get_or_insert(now)) >= STAYS;
        }
        false
    }
}

impl Wake for Arrival {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.arrived.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Whether `error` is that the peer does not keep to what flow control allows.
pub(crate) fn is_offence(error: &io::Error) -> bool {
    let cause = error.get_ref();
    cause
        .and_then(|cause| cause.downcast_ref::<OutOfBounds>())
        .is_some()
}

/// It came to its end without all of its bytes.
fn lost() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn offence(error: OutOfBounds) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[path = "inflow_tests.rs"]
mod tests;

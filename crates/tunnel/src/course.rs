//! How far a TCP stream has come in its two directions, and what of it may have to be sent
//! again: all that is needed to go on on another connection with the peer. Pure.
//!
//! QUIC sends again what is lost on the way; but not in time when all ways were away for a
//! while (see [`crate::resume`]). So the sender keeps what it has last given to the transport.
//! The other end's flow control tells how much is enough: it has read all but what its window
//! allows beyond that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::read_ahead::SPAN;
use crate::readings::Reading;
use crate::replay::{OutOfPlace, Replay};
use crate::unread_pieces::UnreadPieces;

/// Bytes that all streams of a node together may keep. A stream beyond it keeps nothing.
const IN_ALL: usize = 64 << 20;
/// What an entry costs besides its bytes.
const ENTRY: usize = 96;
/// What was given to the transport so long ago has arrived, for if the peer had been silent
/// since, it would have been noticed.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Both directions of a stream, as one end sees them.
#[derive(Debug)]
pub(crate) struct Course {
    /// From this end's socket into the tunnel.
    pub(crate) outbound: Outbound,
    /// Out of the tunnel to this end's socket.
    pub(crate) inbound: Inbound,
}

/// Bytes that all streams of a node keep. Copies are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptBytes(Arc<AtomicUsize>);

/// The direction that sends.
#[derive(Debug)]
pub(crate) struct Outbound {
    /// In order, without a gap, up to `end`. Those before `unwritten` were given to the
    /// transport as a whole.
    pieces: VecDeque<Piece>,
    unwritten: usize,
    /// Position of the first byte of the piece `unwritten`.
    unwritten_at: u64,
    /// Position of the first byte kept.
    kept_from: u64,
    /// Position up to which bytes were given to the transport.
    written: u64,
    /// Position after the last byte that the socket gave.
    end: u64,
    /// What the pieces cost.
    cost: usize,
    all: KeptBytes,
    /// What goes by a lane, while it does; it begins where the pieces end.
    lane: Option<Replay>,
    /// What of it may wait in small pieces.
    pub(crate) unread: UnreadPieces,
    /// Whether the socket has come to its end.
    pub(crate) ended: bool,
    /// Whether the transport was told so.
    pub(crate) finished: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    since: Instant,
}

/// The direction that receives.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    /// Position after the last byte that came.
    at: u64,
    /// The same, for the other end that asks.
    reading: Arc<Reading>,
    /// What came and is not passed on yet.
    pub(crate) rest: Vec<Bytes>,
    /// Whether it comes by a lane.
    by_lane: bool,
    /// Whether the present stream has come to its end.
    pub(crate) ended: bool,
    /// Whether the socket was told so.
    pub(crate) passed_on: bool,
}

impl Course {
    pub(crate) fn new(all: KeptBytes) -> Self {
        Self {
            outbound: Outbound::new(all),
            inbound: Inbound::default(),
        }
    }

    /// Whether it can go on where the other end has this node's bytes up to `received` and
    /// its own from `kept_from` on.
    pub(crate) fn meets(&self, received: u64, kept_from: u64) -> bool {
        self.outbound.can_go_on_at(received) && kept_from <= self.inbound.at
    }

    /// Whether it can go on by the same stream as well. While a direction goes by a lane, the
    /// stream's two ends do not know where; only a fresh one has nothing in it.
    pub(crate) fn can_stay(&self) -> bool {
        self.outbound.lane.is_none() && !self.inbound.by_lane
    }

    /// Goes on on another stream, where the other end has this node's bytes up to `received`.
    pub(crate) fn go_on_at(&mut self, received: u64, now: Instant) {
        self.outbound.leave_lane(now);
        self.outbound.go_on_at(received);
        self.inbound.ended = false;
        self.inbound.by_lane = false;
    }

    /// Whether both directions have come to their end, as far as this end can know.
    pub(crate) fn is_complete(&self) -> bool {
        let Inbound { rest, ended, .. } = &self.inbound;
        self.outbound.finished && *ended && rest.is_empty()
    }
}

impl Outbound {
    pub(crate) fn new(all: KeptBytes) -> Self {
        Self {
            pieces: VecDeque::new(),
            unwritten: 0,
            unwritten_at: 0,
            kept_from: 0,
            written: 0,
            end: 0,
            cost: 0,
            all,
            lane: None,
            unread: UnreadPieces::default(),
            ended: false,
            finished: false,
        }
    }

    /// The socket gave these.
    pub(crate) fn push(&mut self, bytes: Bytes, now: Instant) {
        self.forget_read();
        self.append(bytes, now);
    }

    fn append(&mut self, bytes: Bytes, now: Instant) {
        self.end += bytes.len() as u64;
        self.add_cost(bytes.len() + ENTRY);
        self.pieces.push_back(Piece { bytes, since: now });
    }

    /// What is to be given to the transport next, in order.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut taken = usize::try_from(self.written - self.unwritten_at).unwrap_or(usize::MAX);
        self.pieces.range(self.unwritten..).map(move |piece| {
            let taken = std::mem::take(&mut taken);
            piece.bytes.slice(taken.min(piece.bytes.len())..)
        })
    }

    /// The transport has taken so many bytes of [`Self::unwritten`] by one write.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.unread.wrote();
        self.written += bytes as u64;
        while let Some(piece) = self.pieces.get(self.unwritten)
            && self.unwritten_at + piece.bytes.len() as u64 <= self.written
        {
            self.unwritten_at += piece.bytes.len() as u64;
            self.unwritten += 1;
        }
    }

    /// Position up to which bytes were given to the transport.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Position of the first byte that can be sent again.
    pub(crate) fn kept_from(&self) -> u64 {
        self.kept_from
    }

    /// What goes by a lane, from here on or since it does.
    pub(crate) fn lane(&mut self) -> &mut Replay {
        self.lane.get_or_insert_with(|| Replay::new(self.end))
    }

    /// The other end has taken all before `position`.
    pub(crate) fn taken(&mut self, position: u64) -> Result<(), OutOfPlace> {
        self.lane().forget(position)?;
        if position > self.end {
            self.forget(self.pieces.len());
            self.unwritten_at = position;
            (self.kept_from, self.written, self.end) = (position, position, position);
        }
        Ok(())
    }

    /// What went by the lane and was not taken is to be given to the transport.
    pub(crate) fn leave_lane(&mut self, now: Instant) {
        let lane = self.lane.take();
        for bytes in lane.iter().flat_map(Replay::bytes) {
            // Nothing may be forgotten here: the other end may have been told that it is there.
            self.append(Bytes::copy_from_slice(bytes), now);
        }
    }

    /// Forgets what was given to the transport long ago. Returns when to look again.
    pub(crate) fn forget_before(&mut self, now: Instant) -> Option<Instant> {
        let is_old = |piece: &&Piece| now.saturating_duration_since(piece.since) >= FORGOTTEN_AFTER;
        let written = self.pieces.range(..self.unwritten);
        let old = written.take_while(is_old).count();
        self.forget(old);
        self.pieces
            .front()
            .map(|piece| piece.since + FORGOTTEN_AFTER)
    }

    fn can_go_on_at(&self, position: u64) -> bool {
        let end = self.lane.as_ref().map_or(self.end, Replay::end);
        (self.kept_from..=end).contains(&position)
    }

    fn go_on_at(&mut self, position: u64) {
        (self.unwritten, self.unwritten_at) = (0, self.kept_from);
        for piece in &self.pieces {
            let after = self.unwritten_at + piece.bytes.len() as u64;
            if after > position {
                break;
            }
            (self.unwritten, self.unwritten_at) = (self.unwritten + 1, after);
        }
        self.written = position;
        self.finished = false;
        self.unread = UnreadPieces::default();
    }

    /// Forgets what the other end has read for certain, and everything when all streams keep
    /// too much.
    fn forget_read(&mut self) {
        if self.all.are_many() {
            return self.forget(self.unwritten);
        }
        while self.unwritten > 0
            && let Some(first) = self.pieces.front()
            && self.kept_from + first.bytes.len() as u64 + SPAN <= self.written
        {
            self.forget(1);
        }
    }

    fn forget(&mut self, pieces: usize) {
        for piece in self.pieces.drain(..pieces) {
            self.kept_from += piece.bytes.len() as u64;
            self.cost -= piece.bytes.len() + ENTRY;
            self.all
                .0
                .fetch_sub(piece.bytes.len() + ENTRY, Ordering::Relaxed);
        }
        self.unwritten = self.unwritten.saturating_sub(pieces);
    }

    fn add_cost(&mut self, cost: usize) {
        self.cost += cost;
        self.all.0.fetch_add(cost, Ordering::Relaxed);
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl KeptBytes {
    /// How many they are, with what keeping them costs.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn are_many(&self) -> bool {
        self.count() >= IN_ALL
    }
}

impl Inbound {
    /// So many bytes came, of which `rest` is not passed on yet.
    pub(crate) fn take(&mut self, length: usize, rest: Vec<Bytes>) {
        self.at += length as u64;
        self.rest = rest;
        self.reading.is_at(self.at);
    }

    /// Position after the last byte that came.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How far it was read, for the other end that asks.
    pub(crate) fn reading(&self) -> Arc<Reading> {
        Arc::clone(&self.reading)
    }

    /// From now on it comes by a lane.
    pub(crate) fn take_lane(&mut self) {
        self.by_lane = true;
    }

    /// So many bytes came by a lane and were passed on.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.at += bytes as u64;
        self.reading.is_at(self.at);
    }

    /// From now on it comes by the stream again.
    pub(crate) fn leave_lane(&mut self) {
        self.by_lane = false;
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;

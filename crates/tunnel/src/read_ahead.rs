//! What was read of a stream beyond a gap, until the gap is filled. Pure.
//!
//! Read in order, a stream stands while a lost packet is sent again, and what a sender may have
//! under way ends at the stream's window, which cannot be larger (see
//! [`crate::endpoint_options`]). What is read as it comes makes room for more at once; then it
//! is here that it waits, and here that it has its bounds: for each stream, for all streams of a
//! connection, and in gaps. However small the pieces are that it comes in, it takes the room of
//! the bytes that it spans.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};

use crate::endpoint_options::STREAM_WINDOW;

/// Bytes of one stream that may wait behind a gap. With those that the sender may have under
/// way besides, it is what a path of 30 ms and 500 Mbit/s carries while a packet is sent again.
pub(crate) const READ_AHEAD: u32 = STREAM_WINDOW;
/// Bytes that may lie between what was taken of a stream and the last that its sender may send.
pub(crate) const SPAN: u64 = STREAM_WINDOW as u64 + READ_AHEAD as u64;
/// Bytes that are stored together.
const BLOCK: usize = 16 * 1024;
/// Bytes that may be read at once.
pub(crate) const PIECE: usize = BLOCK;
/// Bytes of blocks that all streams of a connection may have.
const IN_ALL: usize = 16 << 20;
/// Gaps of one stream. A window of full packets has at most five hundred.
const MOST_GAPS: usize = 1024;

/// Bytes of blocks that the streams of a connection have. Copies are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct BytesAhead(Arc<AtomicUsize>);

/// What was read of one stream and is to be taken in order.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    /// Position of the first byte that was not taken.
    at: u64,
    /// Number of the first block, which begins at that many times [`BLOCK`], or at `at`, if
    /// that is later.
    first: u64,
    blocks: VecDeque<Option<BytesMut>>,
    /// Where bytes are: first and last position of each stretch; no two touch.
    there: BTreeMap<u64, u64>,
    /// How many they are.
    held: u64,
    all: BytesAhead,
}

/// What came fits no bound that its sender keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutOfBounds {
    #[error("bytes up to position {end} of a stream that was read up to {at}")]
    TooFar { at: u64, end: u64 },
    #[error("a stream with more than {MOST_GAPS} gaps")]
    TooManyGaps,
}

impl ReadAhead {
    /// Nothing yet, of a stream that was taken up to `at`.
    pub(crate) fn new(at: u64, all: BytesAhead) -> Self {
        Self {
            at,
            first: at / BLOCK as u64,
            blocks: VecDeque::new(),
            there: BTreeMap::new(),
            held: 0,
            all,
        }
    }

    /// Position of the first byte that was not taken.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes may be read beyond a gap, at once and in one piece; 0 when none may.
    pub(crate) fn room(&self) -> usize {
        if self.all.count() + 2 * BLOCK > IN_ALL {
            return 0;
        }
        let left = u64::from(READ_AHEAD).saturating_sub(self.held);
        usize::try_from(left).unwrap_or(usize::MAX).min(PIECE)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    /// `bytes` came, which begin at `position`.
    ///
    /// # Errors
    ///
    /// When they do not fit; what came before is as it was, or not to be used any more.
    pub(crate) fn put(&mut self, position: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let end = position.saturating_add(bytes.len() as u64);
        if end > self.at.saturating_add(SPAN) {
            return Err(OutOfBounds::TooFar { at: self.at, end });
        }
        let taken = self.at.saturating_sub(position);
        let taken = usize::try_from(taken).unwrap_or(usize::MAX);
        let Some(bytes) = bytes.get(taken..).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        let start = position.max(self.at);
        self.store(start, bytes);
        self.note(start, end);
        match self.there.len() <= MOST_GAPS {
            true => Ok(()),
            false => Err(OutOfBounds::TooManyGaps),
        }
    }

    /// The next bytes in order, `most` at most; none when there is a gap.
    pub(crate) fn take(&mut self, most: usize) -> Option<Bytes> {
        let (&start, &end) = self.there.first_key_value()?;
        if start != self.at || most == 0 {
            return None;
        }
        let block = self.blocks.front_mut()?.as_mut()?;
        let there = usize::try_from(end - start).unwrap_or(usize::MAX);
        let length = there.min(most).min(block.len());
        let bytes = block.split_to(length).freeze();
        self.pass(length);
        Some(bytes)
    }

    /// The next bytes in order, so many, were taken from elsewhere.
    pub(crate) fn pass(&mut self, length: usize) {
        self.at += length as u64;
        while let Some(entry) = self.there.first_entry()
            && *entry.key() < self.at
        {
            let (start, end) = (*entry.key(), *entry.get());
            entry.remove();
            self.held -= end - start;
            if end > self.at {
                self.held += end - self.at;
                self.there.insert(self.at, end);
            }
        }
        let first = self.at / BLOCK as u64;
        while self.first < first {
            self.first += 1;
            if let Some(Some(_)) = self.blocks.pop_front() {
                self.all.0.fetch_sub(BLOCK, Ordering::Relaxed);
            }
        }
        let length = self.length_of(self.first);
        if let Some(Some(block)) = self.blocks.front_mut() {
            block.advance(block.len() - length);
        }
    }

    fn store(&mut self, mut position: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let number = position / BLOCK as u64;
            let end = (number + 1) * BLOCK as u64;
            let length =
                usize::try_from(end - position).map_or(bytes.len(), |l| l.min(bytes.len()));
            let block = self.block(number);
            let from = block.len() - (end - position) as usize;
            block[from..from + length].copy_from_slice(&bytes[..length]);
            position += length as u64;
            bytes = &bytes[length..];
        }
    }

    fn block(&mut self, number: u64) -> &mut BytesMut {
        let index = (number - self.first) as usize;
        if self.blocks.len() <= index {
            self.blocks.resize_with(index + 1, || None);
        }
        let length = self.length_of(number);
        let all = &self.all;
        self.blocks[index].get_or_insert_with(|| {
            all.0.fetch_add(BLOCK, Ordering::Relaxed);
            BytesMut::zeroed(length)
        })
    }

    /// Bytes of a block that were not taken.
    fn length_of(&self, number: u64) -> usize {
        let taken = self.at.saturating_sub(number * BLOCK as u64);
        BLOCK.saturating_sub(usize::try_from(taken).unwrap_or(BLOCK))
    }

    /// Bytes are there from `start` to `end`.
    fn note(&mut self, mut start: u64, mut end: u64) {
        while let Some((&other, &other_end)) = self.there.range(..=end).next_back()
            && other_end >= start
        {
            self.there.remove(&other);
            self.held -= other_end - other;
            start = start.min(other);
            end = end.max(other_end);
        }
        self.there.insert(start, end);
        self.held += end - start;
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let blocks = self.blocks.iter().flatten().count();
        self.all.0.fetch_sub(blocks * BLOCK, Ordering::Relaxed);
    }
}

impl BytesAhead {
    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// As many as there may be.
    #[cfg(test)]
    pub(crate) fn used_up() -> Self {
        Self(Arc::new(AtomicUsize::new(IN_ALL)))
    }
}

#[cfg(test)]
#[path = "read_ahead_tests.rs"]
mod tests;

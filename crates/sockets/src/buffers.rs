//! Buffers that are lent for the moment data moves, so that an idle connection holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes moved by one read of a TCP stream. A connection holds one per direction at most, and
/// only while data waits for a reader that is slower than its writer.
pub const STREAM_BUFFER: usize = 32 * 1024;
/// Room for the largest datagram of either family (IPv6: 65527 bytes).
const DATAGRAM_BUFFER: usize = 64 * 1024;
/// Buffers a worker thread keeps for the next need; further ones are freed.
const KEPT_PER_THREAD: usize = 16;

thread_local! {
    static STREAM: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static DATAGRAM: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

/// A buffer of [`STREAM_BUFFER`] bytes on loan; goes back to the thread it is dropped on.
#[derive(Debug)]
pub struct StreamBuffer(Box<[u8]>);

impl StreamBuffer {
    /// One that was given back, or a new one.
    #[must_use]
    pub fn lend() -> Self {
        let kept = STREAM.with_borrow_mut(Vec::pop);
        Self(kept.unwrap_or_else(|| vec![0; STREAM_BUFFER].into()))
    }
}

impl Drop for StreamBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that is ending has no use for it.
        let _ = STREAM.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_PER_THREAD {
                kept.push(buffer);
            }
        });
    }
}

impl Deref for StreamBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for StreamBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Runs `job` with a buffer that any datagram fits into.
pub fn with_datagram_buffer<T>(job: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = DATAGRAM
        .with_borrow_mut(Option::take)
        .unwrap_or_else(|| vec![0; DATAGRAM_BUFFER].into());
    let done = job(&mut buffer);
    DATAGRAM.with_borrow_mut(|kept| *kept = Some(buffer));
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_lent_again() {
        let first = StreamBuffer::lend();
        let place = first.as_ptr();
        drop(first);
        assert_eq!(StreamBuffer::lend().as_ptr(), place);
    }

    #[test]
    fn no_more_than_a_few_are_kept() {
        let all: Vec<StreamBuffer> = (0..KEPT_PER_THREAD * 4)
            .map(|_| StreamBuffer::lend())
            .collect();
        drop(all);
        assert_eq!(STREAM.with_borrow(Vec::len), KEPT_PER_THREAD);
    }

    #[test]
    fn a_datagram_buffer_may_be_asked_for_while_one_is_lent() {
        with_datagram_buffer(|outer| {
            outer[0] = 1;
            with_datagram_buffer(|inner| assert_eq!(inner.len(), DATAGRAM_BUFFER));
        });
    }
}

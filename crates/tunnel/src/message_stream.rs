//! Datagrams that fit into no packet, on the stream of their flow.
//!
//! Each side tells the other how many it has taken, on the way back of the same stream, so that
//! who has sent knows at the end which may not have come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use edgemesh_wire::{MESSAGE_HEADER, MessageHeader};
use iroh::endpoint::{ReadExactError, SendStream, WriteError};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::counters::{Counters, DatagramDropped};
use crate::inflow::Inflow;

/// Bytes of one flow's messages that wait to be written.
const MOST_WAITING: usize = 1 << 20;
/// Words about messages taken that are written at once.
const MOST_WORDS: usize = 64;

/// Takes messages until the writer can write them.
#[derive(Clone, Debug)]
pub(crate) struct MessageQueue {
    // Unbounded as a channel: the room is what bounds it.
    queue: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
}

/// Writes what was queued, and what the peer is to know.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    messages: mpsc::UnboundedReceiver<Bytes>,
    // Keeps `recv` from ending while all others are gone.
    queue: MessageQueue,
    receipts: Arc<Receipts>,
    counters: Arc<Counters>,
}

/// Which messages of a flow's stream were taken, there and here.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// Those sent of which the peer has not told that it took them.
    unsettled: AtomicU64,
    /// Those taken here of which the peer was not told.
    untold: AtomicUsize,
    news: Notify,
}

impl MessageQueue {
    /// Queues a datagram; returns whether there was room. It is counted either way.
    pub(crate) fn push(&self, payload: &[u8], counters: &Counters) -> bool {
        let Ok(header) = MessageHeader::Message(payload.len()).encode() else {
            counters.datagram_dropped(DatagramDropped::TooLarge);
            return false;
        };
        let mut message = BytesMut::with_capacity(MESSAGE_HEADER + payload.len());
        message.put_slice(&header);
        message.put_slice(payload);
        let queued = self.queue(message.freeze());
        if let Err(reason) = queued {
            counters.datagram_dropped(reason);
        }
        queued.is_ok()
    }

    fn queue(&self, message: Bytes) -> Result<(), DatagramDropped> {
        // A datagram is far smaller than 4 GiB.
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let Ok(place) = self.room.try_acquire_many(bytes) else {
            return Err(DatagramDropped::QueueFull);
        };
        place.forget();
        let queued = self.queue.send(message);
        queued.map_err(|_| DatagramDropped::FlowEnded)
    }
}

impl MessageWriter {
    pub(crate) fn new(counters: Arc<Counters>) -> (Self, MessageQueue) {
        let (queue, messages) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(MOST_WAITING));
        let queue = MessageQueue { queue, room };
        let writer = Self {
            messages,
            queue: queue.clone(),
            receipts: Arc::default(),
            counters,
        };
        (writer, queue)
    }

    /// What the reader of the other direction is to keep.
    pub(crate) fn receipts(&self) -> Arc<Receipts> {
        Arc::clone(&self.receipts)
    }

    /// Writes what is queued until the stream cannot be written to any more.
    pub(crate) async fn run(mut self, send: &mut SendStream) -> io::Error {
        loop {
            let written = tokio::select! {
                biased;
                words = self.receipts.to_tell() => send.write_chunk(words).await,
                message = self.messages.recv() => match message {
                    Some(message) => self.write(send, message).await,
                    None => return io::ErrorKind::BrokenPipe.into(),
                },
            };
            if let Err(error) = written {
                return error.into();
            }
        }
    }

    async fn write(&self, send: &mut SendStream, message: Bytes) -> Result<(), WriteError> {
        self.queue.room.add_permits(message.len());
        self.receipts.sends();
        send.write_chunk(message).await?;
        self.counters.datagram_went();
        Ok(())
    }
}

impl Drop for MessageWriter {
    /// Nobody writes any more: what is queued is lost, and what the peer has not told of may be.
    fn drop(&mut self) {
        self.messages.close();
        let queued = std::iter::from_fn(|| self.messages.try_recv().ok()).count();
        self.counters
            .datagrams_were_dropped(DatagramDropped::FlowEnded, queued as u64);
        self.counters
            .datagrams_were_dropped(DatagramDropped::Unsettled, self.receipts.end());
    }
}

impl Receipts {
    /// A message is about to be written.
    fn sends(&self) {
        self.unsettled.fetch_add(1, Ordering::Relaxed);
    }

    /// The peer has told that it took so many more.
    fn told(&self, count: usize) -> io::Result<()> {
        let count = count as u64;
        let less = |unsettled: u64| unsettled.checked_sub(count);
        let settled = self
            .unsettled
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        settled.map(drop).map_err(|unsettled| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it says it took {count} messages, where {unsettled} were on their way"),
            )
        })
    }

    /// One was taken here.
    fn took(&self) {
        self.untold.fetch_add(1, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// What the peer is to be told, as soon as there is something. Nobody else may ask
    /// meanwhile.
    async fn to_tell(&self) -> Bytes {
        loop {
            let most = MOST_WORDS * MessageHeader::MOST_TAKEN;
            let mut left = self.untold.load(Ordering::Relaxed).min(most);
            self.untold.fetch_sub(left, Ordering::Relaxed);
            let mut words = BytesMut::new();
            while left > 0 {
                let count = left.min(MessageHeader::MOST_TAKEN);
                if let Ok(word) = MessageHeader::Taken(count).encode() {
                    words.put_slice(&word);
                }
                left -= count;
            }
            if !words.is_empty() {
                return words.freeze();
            }
            self.news.notified().await;
        }
    }

    /// How many may not have come, now that nothing is told any more.
    fn end(&self) -> u64 {
        self.unsettled.swap(0, Ordering::Relaxed)
    }
}

/// Reads messages from a stream.
#[derive(Debug)]
pub(crate) struct MessageReader<'s> {
    recv: &'s mut Inflow,
    receipts: Arc<Receipts>,
}

impl<'s> MessageReader<'s> {
    /// `receipts` are those of the writer of the other direction.
    pub(crate) fn new(recv: &'s mut Inflow, receipts: Arc<Receipts>) -> Self {
        Self { recv, receipts }
    }

    /// The next message; none at the end of the stream.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what is no message, and for a word of messages that were never sent;
    /// else what became of the stream.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut header = [0; MESSAGE_HEADER];
            match self.recv.read_exact(&mut header).await {
                Ok(()) => {}
                Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
                Err(error) => return Err(broken(error)),
            }
            match MessageHeader::decode(header) {
                MessageHeader::Taken(count) => self.receipts.told(count)?,
                MessageHeader::Message(length) => {
                    let mut payload = vec![0; length];
                    self.recv.read_exact(&mut payload).await.map_err(broken)?;
                    self.receipts.took();
                    return Ok(Some(payload.into()));
                }
            }
        }
    }
}

fn broken(error: ReadExactError) -> io::Error {
    match error {
        ReadExactError::FinishedEarly(_) => io::Error::new(
            io::ErrorKind::InvalidData,
            "the stream ends within a message",
        ),
        ReadExactError::ReadError(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// The counts that the words tell.
    fn counts(words: &[u8]) -> Vec<usize> {
        let words = words.chunks_exact(MESSAGE_HEADER);
        words
            .map(|word| match MessageHeader::decode([word[0], word[1]]) {
                MessageHeader::Taken(count) => count,
                MessageHeader::Message(length) => panic!("a message of {length} bytes"),
            })
            .collect()
    }

    #[test]
    fn what_is_queued_when_a_flow_ends_is_counted_and_what_comes_later() {
        let counters = Arc::new(Counters::default());
        let (writer, queue) = MessageWriter::new(Arc::clone(&counters));
        assert!(queue.push(b"one", &counters));
        assert!(queue.push(b"two", &counters));
        drop(writer);
        assert_eq!(counters.datagrams_dropped(DatagramDropped::FlowEnded), 2);
        assert!(!queue.push(b"three", &counters));
        assert_eq!(counters.datagrams_dropped(DatagramDropped::FlowEnded), 3);
        assert_eq!(counters.datagrams_dropped(DatagramDropped::Unsettled), 0);
    }

    #[test]
    fn what_was_sent_and_not_told_of_when_a_flow_ends_is_counted() {
        let counters = Arc::new(Counters::default());
        let (writer, _queue) = MessageWriter::new(Arc::clone(&counters));
        let receipts = writer.receipts();
        (0..5).for_each(|_| receipts.sends());
        receipts.told(2).unwrap();
        receipts.told(1).unwrap();
        drop(writer);
        assert_eq!(counters.datagrams_dropped(DatagramDropped::Unsettled), 2);
    }

    #[test]
    fn a_peer_that_took_more_than_was_sent_is_not_believed() {
        let receipts = Receipts::default();
        receipts.sends();
        let error = receipts.told(2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        receipts.told(1).unwrap();
        assert_eq!(receipts.end(), 0);
    }

    #[test]
    fn all_that_was_taken_is_told_once() {
        let receipts = Receipts::default();
        assert_eq!(receipts.to_tell().now_or_never(), None);
        let most = MessageHeader::MOST_TAKEN;
        (0..=most).for_each(|_| receipts.took());
        let words = receipts.to_tell().now_or_never().unwrap();
        assert_eq!(counts(&words), [most, 1]);
        assert_eq!(receipts.to_tell().now_or_never(), None);
        receipts.took();
        let words = receipts.to_tell().now_or_never().unwrap();
        assert_eq!(counts(&words), [1]);
    }

    #[test]
    fn what_was_taken_while_nothing_could_be_told_is_told_in_bounded_steps() {
        let receipts = Receipts::default();
        let all = 3 * MOST_WORDS * MessageHeader::MOST_TAKEN / 2;
        (0..all).for_each(|_| receipts.took());
        let mut told = 0;
        while let Some(words) = receipts.to_tell().now_or_never() {
            assert!(words.len() <= MOST_WORDS * MESSAGE_HEADER);
            told += counts(&words).iter().sum::<usize>();
        }
        assert_eq!(told, all);
    }
}

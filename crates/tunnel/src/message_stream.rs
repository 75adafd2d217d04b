//! Datagrams that fit into no packet, on the stream of their flow.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use edgemesh_wire::{MESSAGE_HEADER, message_header, message_length};
use iroh::endpoint::{ReadExactError, SendStream};
use tokio::sync::{Semaphore, mpsc};

use crate::counters::{Counters, DatagramDropped};
use crate::inflow::Inflow;

/// Bytes of one flow's messages that wait to be written.
const MOST_WAITING: usize = 1 << 20;

/// Takes messages until the writer can write them.
#[derive(Clone, Debug)]
pub(crate) struct MessageQueue {
    // Unbounded as a channel: the room is what bounds it.
    queue: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
}

/// Writes what was queued.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    messages: mpsc::UnboundedReceiver<Bytes>,
    // Keeps `recv` from ending while all others are gone.
    queue: MessageQueue,
    /// One is written, though maybe not to its end.
    writing: bool,
    counters: Arc<Counters>,
}

impl MessageQueue {
    /// Queues a datagram; returns whether there was room. It is counted either way.
    pub(crate) fn push(&self, payload: &[u8], counters: &Counters) -> bool {
        let Ok(header) = message_header(payload.len()) else {
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
            writing: false,
            counters,
        };
        (writer, queue)
    }

    /// Writes what is queued until the stream cannot be written to any more.
    pub(crate) async fn run(mut self, send: &mut SendStream) -> io::Error {
        while let Some(message) = self.messages.recv().await {
            self.queue.room.add_permits(message.len());
            self.writing = true;
            if let Err(error) = send.write_chunk(message).await {
                return error.into();
            }
            self.writing = false;
            self.counters.datagram_went();
        }
        io::ErrorKind::BrokenPipe.into()
    }
}

impl Drop for MessageWriter {
    /// Nobody writes any more: what is queued is lost.
    fn drop(&mut self) {
        self.messages.close();
        let queued = std::iter::from_fn(|| self.messages.try_recv().ok()).count();
        let lost = queued + usize::from(self.writing);
        self.counters
            .datagrams_were_dropped(DatagramDropped::FlowEnded, lost as u64);
    }
}

/// Reads messages from a stream.
#[derive(Debug)]
pub(crate) struct MessageReader<'s> {
    recv: &'s mut Inflow,
}

impl<'s> MessageReader<'s> {
    pub(crate) fn new(recv: &'s mut Inflow) -> Self {
        Self { recv }
    }

    /// The next message; none at the end of the stream.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what is no message; else what became of the stream.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut header = [0; MESSAGE_HEADER];
        match self.recv.read_exact(&mut header).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(broken(error)),
        }
        let length = message_length(header)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let mut payload = vec![0; length];
        self.recv.read_exact(&mut payload).await.map_err(broken)?;
        Ok(Some(payload.into()))
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
    use super::*;

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
    }
}

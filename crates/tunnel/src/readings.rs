//! How far this end has read the streams of a connection, for the peer that asks
//! (see [`crate::unread_pieces`]).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edgemesh_wire::{Answer, ReadUpTo};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::peer_stream::PeerStream;
use crate::session::Session;

/// Before it is asked again. The other end may not have begun to read.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How far one stream was read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    at: AtomicU64,
    moved: Notify,
}

/// The streams of one connection that are being read, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Readings(Mutex<BTreeMap<u64, Arc<Reading>>>);

/// A stream's place in the table, until it is dropped.
#[derive(Debug)]
pub(crate) struct BeingRead<'t> {
    table: &'t Readings,
    stream: u64,
}

impl Reading {
    /// It was read up to `position`.
    pub(crate) fn is_at(&self, position: u64) {
        self.at.store(position, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Waits until it was read up to `position`.
    pub(crate) async fn reached(&self, position: u64) {
        loop {
            let moved = self.moved.notified();
            if self.at.load(Ordering::Acquire) >= position {
                return;
            }
            moved.await;
        }
    }
}

impl Readings {
    /// From now on it can be asked for `stream`.
    pub(crate) fn register(&self, stream: u64, reading: Arc<Reading>) -> BeingRead<'_> {
        self.streams().insert(stream, reading);
        BeingRead {
            table: self,
            stream,
        }
    }

    /// How far `stream` was read; none when it is not being read.
    pub(crate) fn of(&self, stream: u64) -> Option<Arc<Reading>> {
        self.streams().get(&stream).cloned()
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Reading>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BeingRead<'_> {
    fn drop(&mut self) {
        self.table.streams().remove(&self.stream);
    }
}

/// Waits until the peer says that it has read what `asked` is about.
pub(crate) async fn read_by_peer(session: &Session, asked: ReadUpTo) {
    // A connection that is lost is noticed by the stream.
    while !ask(session, &asked).await.unwrap_or(false) {
        sleep(AGAIN_AFTER).await;
    }
}

async fn ask(session: &Session, asked: &ReadUpTo) -> io::Result<bool> {
    let mut words = PeerStream::new(session.connection.open_bi().await?);
    words.send.write_all(&asked.encode()).await?;
    let mut answer = [0; 1];
    let read = words.recv.read_exact(&mut answer).await;
    read.map_err(io::Error::other)?;
    words.close_in_order();
    Ok(Answer::decode(answer[0]) == Ok(Answer::Connected))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_position_is_told_when_it_is_reached_and_not_before() {
        let table = Readings::default();
        let being_read = table.register(4, Arc::default());
        let reading = table.of(4).unwrap();
        let mut reached = Box::pin(reading.reached(100));
        assert!(reached.as_mut().now_or_never().is_none());
        reading.is_at(99);
        assert!(reached.as_mut().now_or_never().is_none());
        reading.is_at(150);
        reached.await;
        reading.reached(150).await;
        drop(being_read);
        assert!(table.of(4).is_none());
    }
}

//! The streams of a connection that may be given a lane, by their numbers, and how many have one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::lane::Lane;

/// The lanes of one connection with a peer.
#[derive(Debug, Default)]
pub(crate) struct LaneTable {
    /// Where streams that the peer has opened take lanes, by their numbers.
    streams: Mutex<BTreeMap<u64, mpsc::Sender<Lane>>>,
    going: AtomicUsize,
}

/// A lane that goes on, counted as long as the value lives.
#[derive(Debug)]
pub(super) struct LaneGoing(Arc<LaneTable>);

/// Lanes that the other end offers for one stream.
#[derive(Debug)]
pub(crate) struct Offers {
    table: Arc<LaneTable>,
    stream: u64,
    offered: mpsc::Receiver<Lane>,
}

impl LaneTable {
    /// From now on lanes can be offered for `stream`, until the value is dropped.
    pub(crate) fn register(self: &Arc<Self>, stream: u64) -> Offers {
        let (sender, offered) = mpsc::channel(1);
        self.streams().insert(stream, sender);
        Offers {
            table: Arc::clone(self),
            stream,
            offered,
        }
    }

    /// Where lanes for `stream` are offered; none when there is no such stream.
    pub(super) fn of(&self, stream: u64) -> Option<mpsc::Sender<Lane>> {
        self.streams().get(&stream).cloned()
    }

    /// Lanes that go on, of streams that either side has opened.
    pub(crate) fn going(&self) -> usize {
        self.going.load(Ordering::Relaxed)
    }

    pub(super) fn count(self: &Arc<Self>) -> LaneGoing {
        self.going.fetch_add(1, Ordering::Relaxed);
        LaneGoing(Arc::clone(self))
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, mpsc::Sender<Lane>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offers {
    pub(super) async fn next(&mut self) -> Lane {
        match self.offered.recv().await {
            Some(lane) => lane,
            // The table keeps the other end of the channel as long as this lives.
            None => std::future::pending().await,
        }
    }
}

impl Drop for LaneGoing {
    fn drop(&mut self) {
        self.0.going.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Offers {
    fn drop(&mut self) {
        self.table.streams().remove(&self.stream);
    }
}

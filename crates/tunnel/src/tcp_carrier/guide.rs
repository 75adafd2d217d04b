//! Decides when a stream gets a lane, and sees each lane to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::lane::{Lane, LaneEnd, LaneIn, LaneOut, Takers};
use super::lane_table::Offers;
use super::mover::Mover;

/// Bytes by which a stream shows that it moves much. To make a lane costs about as much work
/// as a lane saves on the next ones.
const MUCH: u64 = 1 << 20;
/// Between two lanes of a stream.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the lanes of one stream come from.
#[derive(Debug)]
pub(crate) enum Lanes {
    /// Nowhere.
    None,
    /// This node opened the stream, and asks for them.
    Asked(Mover),
    /// The other end asks for them.
    Offered(Offers),
}

/// Counts what a stream moves, and tells when it is much.
#[derive(Debug)]
pub(crate) struct Progress {
    moved: AtomicU64,
    much_at: AtomicU64,
    much: Notify,
    over: AtomicBool,
}

/// A stream's guide, and what its two directions have of that.
#[derive(Debug)]
pub(crate) struct Guided {
    pub(crate) brought: Brought,
    pub(crate) guide: Guide,
}

/// What the two directions of a stream have of its guide.
#[derive(Debug)]
pub(crate) struct Brought {
    /// For the direction that sends.
    pub(crate) outgoing: mpsc::Receiver<LaneOut>,
    /// For the direction that receives.
    pub(crate) incoming: mpsc::Receiver<LaneIn>,
    /// For both.
    pub(crate) progress: Arc<Progress>,
}

/// Brings the lanes.
#[derive(Debug)]
pub(crate) struct Guide {
    lanes: Lanes,
    takers: Takers,
    progress: Arc<Progress>,
}

impl Guided {
    pub(crate) fn new(lanes: Lanes) -> Self {
        let (to_outgoing, outgoing) = mpsc::channel(1);
        let (to_incoming, incoming) = mpsc::channel(1);
        let progress = Arc::new(Progress {
            moved: AtomicU64::new(0),
            much_at: AtomicU64::new(MUCH),
            much: Notify::new(),
            over: AtomicBool::new(false),
        });
        Self {
            brought: Brought {
                outgoing,
                incoming,
                progress: Arc::clone(&progress),
            },
            guide: Guide {
                lanes,
                takers: Takers {
                    outgoing: to_outgoing,
                    incoming: to_incoming,
                },
                progress,
            },
        }
    }
}

impl Guide {
    /// The first lane of the stream, which is not used yet.
    pub(crate) async fn first(&mut self) -> Lane {
        self.next().await
    }

    /// Brings lanes for as long as the stream lasts, this one `first`.
    pub(crate) async fn run(mut self, first: Lane) -> Infallible {
        let mut lane = first;
        loop {
            // Boxed: most streams never have one.
            let end = Box::pin(lane.run(&self.takers, &self.progress)).await;
            if let Lanes::Asked(mover) = &self.lanes {
                match end {
                    LaneEnd::InOrder => {}
                    LaneEnd::Lost => mover.note_lost(),
                }
                sleep(PAUSE).await;
            }
            self.progress.forget();
            lane = self.next().await;
        }
    }

    async fn next(&mut self) -> Lane {
        match &mut self.lanes {
            Lanes::None => std::future::pending().await,
            Lanes::Offered(offers) => offers.next().await,
            Lanes::Asked(mover) => loop {
                self.progress.much.notified().await;
                if let Some(lane) = Box::pin(mover.lane()).await {
                    return lane;
                }
                sleep(PAUSE).await;
                self.progress.forget();
            },
        }
    }
}

impl Progress {
    /// The stream moved so many bytes.
    pub(crate) fn count(&self, bytes: usize) {
        let bytes = bytes as u64;
        let moved = self.moved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if moved >= self.much_at.load(Ordering::Relaxed) {
            self.much_at.store(u64::MAX, Ordering::Relaxed);
            self.much.notify_one();
        }
    }

    /// It has come to its end, or is broken.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// From now on it has to move much again.
    fn forget(&self) {
        let moved = self.moved.load(Ordering::Relaxed);
        self.much_at.store(moved + MUCH, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_stream_shows_once_that_it_moves_much_and_again_when_it_is_forgotten() {
        let Brought { progress, .. } = Guided::new(Lanes::None).brought;
        let is_much = || progress.much.notified().now_or_never().is_some();
        progress.count(1 << 19);
        assert!(!is_much());
        progress.count(1 << 19);
        progress.count(1 << 30);
        assert!(is_much());
        assert!(!is_much());
        progress.forget();
        progress.count(1 << 19);
        assert!(!is_much());
        progress.count(1 << 19);
        assert!(is_much());
    }
}

//! Copies a connection both ways as if there were nobody between its ends.
//!
//! * An end of stream passes as an end of stream and leaves the other way open (RFC 9293
//!   section 3.6, half-closed connections).
//! * A reset passes as a reset, at once.
//! * What a slow reader does not take stops its writer: per direction one buffer or pipe
//!   waits, and none at all while nothing moves.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use edgemesh_sockets::{PipePool, ResetOnDrop, broken, end_stream};

use crate::connection_end::{Broken, End, Side};
use crate::metrics::{Counters, Way};
use crate::pump::Pump;

/// Bytes moved so far.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    up: AtomicU64,
    down: AtomicU64,
}

impl Moved {
    pub(crate) fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Relays until both sides have ended their stream, or one broke the connection; then
/// the other is reset, too.
pub(crate) async fn relay(
    client: ResetOnDrop,
    endpoint: ResetOnDrop,
    pipes: &PipePool,
    moved: &Moved,
    counters: &Counters,
) -> Result<(), Broken> {
    let ends = [
        End {
            stream: client.stream(),
            side: Side::Client,
        },
        End {
            stream: endpoint.stream(),
            side: Side::Endpoint,
        },
    ];
    let count = |way, bytes| {
        moved.add(way, bytes);
        counters.tcp_bytes(way, bytes);
    };
    {
        let [client, endpoint] = ends;
        let up = Pump {
            from: client,
            to: endpoint,
            pipes,
            moved: |n| count(Way::Up, n),
        };
        let down = Pump {
            from: endpoint,
            to: client,
            pipes,
            moved: |n| count(Way::Down, n),
        };
        both(pin!(up.run()), pin!(down.run()), ends).await?;
    }
    // The end of the direction that was open for longer passes by closing.
    client.close_in_order();
    endpoint.close_in_order();
    Ok(())
}

async fn both(
    mut up: impl Future<Output = Result<(), Broken>> + Unpin,
    mut down: impl Future<Output = Result<(), Broken>> + Unpin,
    [client, endpoint]: [End<'_>; 2],
) -> Result<(), Broken> {
    tokio::select! {
        ended = &mut up => {
            ended?;
            pass_end(client, endpoint, down).await
        }
        ended = &mut down => {
            ended?;
            pass_end(endpoint, client, up).await
        }
    }
}

/// Passes the end of `ended` on, and waits for the direction that is still open. Nothing is
/// read from `ended` any more, so its reset has to be watched for.
async fn pass_end(
    ended: End<'_>,
    to: End<'_>,
    open: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    end_stream(to.stream).map_err(|error| to.broken(error))?;
    tokio::select! {
        biased;
        done = open => done,
        error = broken(ended.stream) => Err(ended.broken(error)),
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;

//! Copies a connection both ways as if there were nobody between its ends.
//!
//! * An end of stream passes as an end of stream and leaves the other way open (RFC 9293
//!   section 3.6, half-closed connections).
//! * A reset passes as a reset, at once.
//! * What a slow reader does not take stops its writer: per direction one buffer waits, and
//!   none at all while nothing moves.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use edgemesh_sockets::{ResetOnDrop, StreamBuffer, broken, end_stream};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use crate::metrics::{Counters, Way};

/// Which side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Endpoint,
}

/// A side broke the connection.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) side: Side,
    pub(crate) error: io::Error,
}

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
    moved: &Moved,
    counters: &Counters,
) -> Result<(), Broken> {
    let ends = [
        (client.stream(), Side::Client),
        (endpoint.stream(), Side::Endpoint),
    ];
    let count = |way, bytes| {
        moved.add(way, bytes);
        counters.tcp_bytes(way, bytes);
    };
    {
        let up = pin!(pump(ends[0], ends[1], |bytes| count(Way::Up, bytes)));
        let down = pin!(pump(ends[1], ends[0], |bytes| count(Way::Down, bytes)));
        both(up, down, ends).await?;
    }
    client.close_in_order();
    endpoint.close_in_order();
    Ok(())
}

type End<'a> = (&'a TcpStream, Side);

async fn both(
    mut up: impl Future<Output = Result<(), Broken>> + Unpin,
    mut down: impl Future<Output = Result<(), Broken>> + Unpin,
    [client, endpoint]: [End<'_>; 2],
) -> Result<(), Broken> {
    tokio::select! {
        ended = &mut up => {
            ended?;
            or_broken(down, client).await
        }
        ended = &mut down => {
            ended?;
            or_broken(up, endpoint).await
        }
    }
}

/// Waits for the direction that is still open. Nothing is read from `ended` any more, so
/// its reset has to be watched for.
async fn or_broken(
    open: impl Future<Output = Result<(), Broken>>,
    ended: End<'_>,
) -> Result<(), Broken> {
    tokio::select! {
        biased;
        done = open => done,
        error = broken(ended.0) => Err(Broken { side: ended.1, error }),
    }
}

/// Moves bytes until `from` ends, and passes the end on.
async fn pump(from: End<'_>, to: End<'_>, moved: impl Fn(usize)) -> Result<(), Broken> {
    let by = |(_, side): End<'_>| move |error| Broken { side, error };
    loop {
        from.0.readable().await.map_err(by(from))?;
        let mut buffer = StreamBuffer::lend();
        loop {
            match from.0.try_read(&mut buffer) {
                Ok(0) => return end_stream(to.0).map_err(by(to)),
                Ok(n) => {
                    write_all(&buffer[..n], from, to).await?;
                    moved(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(by(from)(error)),
            }
            // A stream that never pauses must leave the worker to others now and then.
            consume_budget().await;
        }
    }
}

async fn write_all(mut bytes: &[u8], from: End<'_>, to: End<'_>) -> Result<(), Broken> {
    while !bytes.is_empty() {
        match to.0.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    biased;
                    // Nobody reads `from` while we wait, so its reset has to be watched for.
                    error = broken(from.0) => return Err(Broken { side: from.1, error }),
                    ready = to.0.writable() => {
                        ready.map_err(|error| Broken { side: to.1, error })?;
                    }
                }
            }
            Err(error) => return Err(Broken { side: to.1, error }),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;

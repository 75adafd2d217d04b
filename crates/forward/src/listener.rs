//! Accepts intercepted connections and owns their tasks until they end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::addrs::{ClientAddr, ListenAddr};
use crate::connection::Connections;
use crate::liveness::SignOfLife;

/// Pause after a failure to accept that is not about one connection (out of descriptors,
/// out of memory): connections wait in the backlog meanwhile.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often a listener shows that it goes round, though nobody connects.
const SIGN_EVERY: Duration = Duration::from_millis(500);

/// A listener of one family, with all connections that came through it.
pub(crate) struct Listener {
    listener: TcpListener,
    address: ListenAddr,
    connections: Arc<Connections>,
    tasks: JoinSet<()>,
    /// Room for connections being served and for those that wait for a place.
    room: Arc<Semaphore>,
    /// Shared by all listeners, so that an id stands for one connection of the process.
    ids: Arc<std::sync::atomic::AtomicU64>,
    not_before: Instant,
    sign: SignOfLife,
}

impl Listener {
    pub(crate) fn new(
        listener: TcpListener,
        address: ListenAddr,
        connections: Arc<Connections>,
        room: Arc<Semaphore>,
        ids: Arc<std::sync::atomic::AtomicU64>,
        sign: SignOfLife,
    ) -> Self {
        Self {
            listener,
            address,
            connections,
            tasks: JoinSet::new(),
            room,
            ids,
            not_before: Instant::now(),
            sign,
        }
    }

    /// Accepts until `stop`, and returns when the last connection has ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut sign = interval(SIGN_EVERY);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = sign.tick() => self.sign.give(),
                Some(ended) = self.tasks.join_next() => self.note(ended),
                (accepted, room) = accept(&self.listener, &self.room, self.not_before) => {
                    self.admit(accepted, room);
                }
            }
        }
        self.take_what_the_kernel_has_accepted();
        drop(self.listener);
        while let Some(ended) = self.tasks.join_next().await {
            note(&self.connections, ended);
        }
    }

    /// Closing a listener resets those in its backlog, who have been told that they are
    /// connected.
    fn take_what_the_kernel_has_accepted(&mut self) {
        while let Some((accepted @ Ok(_), room)) =
            accept(&self.listener, &self.room, Instant::now()).now_or_never()
        {
            self.admit(accepted, room);
        }
    }

    fn admit(&mut self, accepted: io::Result<(TcpStream, ClientAddr)>, room: OwnedSemaphorePermit) {
        match accepted {
            Ok((stream, client)) => {
                let id = self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let connections = Arc::clone(&self.connections);
                let address = self.address;
                self.tasks.spawn(async move {
                    let _room = room;
                    connections.serve(id, stream, client, address).await;
                });
            }
            Err(error) => {
                self.connections.counters.accept_error();
                if !is_about_one_connection(&error) {
                    warn!(listener = %self.address, %error, "cannot accept connections; trying again in {BACK_OFF:?}");
                    self.not_before = Instant::now() + BACK_OFF;
                }
            }
        }
    }

    fn note(&self, ended: Result<(), JoinError>) {
        note(&self.connections, ended);
    }
}

fn note(connections: &Connections, ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        connections.counters.task_panicked();
        error!(%error, "a connection's task panicked; the connection was reset");
    }
}

/// The next connection, as soon as there is room for it; the rest waits in the backlog.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    not_before: Instant,
) -> (io::Result<(TcpStream, ClientAddr)>, OwnedSemaphorePermit) {
    sleep_until(not_before).await;
    let Ok(room) = Arc::clone(room).acquire_owned().await else {
        // The semaphore is never closed.
        return std::future::pending().await;
    };
    let accepted = listener.accept().await;
    (
        accepted.map(|(stream, from)| (stream, ClientAddr(from))),
        room,
    )
}

/// Errors that Linux passes from a new connection to accept (accept(2), "Error handling").
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::PermissionDenied
            | ErrorKind::TimedOut
    )
}

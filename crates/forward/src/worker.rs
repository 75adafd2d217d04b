//! Accepts intercepted connections, and owns the tasks of those it serves until they end.
//!
//! There is a worker for each core, a thread with a runtime and listeners of its own: the kernel
//! spreads connections over the listeners, and what a connection does wakes nobody but its
//! worker. One more worker has no listener and runs in the runtime that the tunnel lives in: it
//! is handed the connections that go there, for each byte of them comes from that runtime.

use std::future::{pending, poll_fn};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use edgemesh_sockets::accept_now;
use edgemesh_tunnel::movable;
use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::addrs::{ClientAddr, ListenAddr};
use crate::connection::Connections;
use crate::crew::{Arrival, Crew, Seat};
use crate::liveness::SignOfLife;

/// Pause after a failure to accept that is not about one connection (out of descriptors,
/// out of memory): connections wait in the backlog meanwhile.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often a worker shows that it goes round, though nobody connects.
const SIGN_EVERY: Duration = Duration::from_millis(500);

/// Connections accepted before those that are served already get their turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) connections: Arc<Connections>,
    pub(crate) crew: Arc<Crew>,
    /// Room for connections being served, for those that wait for a place, and for one that
    /// each worker waits for.
    pub(crate) room: Arc<Semaphore>,
    /// An id stands for one connection of the process.
    pub(crate) ids: Arc<AtomicU64>,
}

/// A worker with all connections that it serves.
pub(crate) struct Worker {
    shared: Shared,
    seat: Seat,
    listeners: Vec<Listener>,
    tasks: JoinSet<()>,
    not_before: Instant,
    sign: SignOfLife,
}

impl Worker {
    /// To be called in the runtime that it will run in, as the listeners were.
    pub(crate) fn new(
        shared: Shared,
        seat: Seat,
        listeners: Vec<Listener>,
        sign: SignOfLife,
    ) -> Self {
        Self {
            shared,
            seat,
            listeners,
            tasks: JoinSet::new(),
            not_before: Instant::now(),
            sign,
        }
    }

    /// Accepts until `stop`, and returns when the last connection has ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut sign = interval(SIGN_EVERY);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = pin!(stop.cancelled());
        loop {
            tokio::select! {
                () = &mut stopped => break,
                _ = sign.tick() => self.sign.give(),
                Some(ended) = self.tasks.join_next() => self.note(ended),
                Some(arrival) = self.seat.inbox.recv() => self.serve(arrival),
                accepted = accept(&self.listeners, &self.shared.room, self.not_before) => {
                    self.admit(accepted);
                    self.accept_more(ACCEPTED_AT_ONCE - 1);
                }
            }
        }
        // Closing a listener resets those in its backlog, who have been told that they are
        // connected.
        self.accept_more(usize::MAX);
        self.listeners.clear();
        self.seat.inbox.close();
        while let Ok(arrival) = self.seat.inbox.try_recv() {
            self.serve(arrival);
        }
        while let Some(ended) = self.tasks.join_next().await {
            self.note(ended);
        }
    }

    fn accept_more(&mut self, most: usize) {
        for _ in 0..most {
            // An error may be there for as long as one asks.
            let more = accept(&self.listeners, &self.shared.room, Instant::now());
            match more.now_or_never() {
                Some(accepted) if accepted.stream.is_ok() => self.admit(accepted),
                Some(_) | None => return,
            }
        }
    }

    fn admit(&mut self, accepted: Accepted) {
        match accepted.stream {
            Ok((stream, client)) => {
                self.shared.connections.counters.accepted();
                self.place(Arrival {
                    id: self.shared.ids.fetch_add(1, Ordering::Relaxed),
                    stream,
                    client,
                    listener: accepted.listener,
                    portal: None,
                    room: accepted.room,
                });
            }
            Err(error) => {
                self.shared.connections.counters.accept_error();
                if !is_about_one_connection(&error) {
                    warn!(listener = %accepted.listener, %error, "cannot accept connections; trying again in {BACK_OFF:?}");
                    self.not_before = Instant::now() + BACK_OFF;
                }
            }
        }
    }

    /// Serves it here, or lets a worker serve it that has less to do.
    fn place(&mut self, arrival: Arrival) {
        let crew = &self.shared.crew;
        let other = self.seat.number.and_then(|me| crew.idler_than(me));
        let Some(other) = other else {
            return self.serve(arrival);
        };
        if let Err(back) = crew.hand_over(other, arrival) {
            self.serve(back);
        }
    }

    fn serve(&mut self, arrival: Arrival) {
        let connections = Arc::clone(&self.shared.connections);
        let loaded = self.seat.loaded();
        let beside_tunnel = self.seat.number.is_none();
        let crew = Arc::clone(&self.shared.crew);
        let arrival = Box::new(arrival);
        let serving = async move {
            let _loaded = loaded;
            let crew = (!beside_tunnel).then_some(&*crew);
            connections.serve(arrival, crew).await;
        };
        if beside_tunnel {
            self.tasks.spawn(movable(serving));
        } else {
            self.tasks.spawn(serving);
        }
    }

    fn note(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            self.shared.connections.counters.task_panicked();
            error!(%error, "a connection's task panicked; the connection was reset");
        }
    }
}

/// What the thread of a worker runs.
pub(crate) fn with_listeners(
    shared: Shared,
    seat: Seat,
    listeners: Vec<(TcpListener, ListenAddr)>,
    sign: SignOfLife,
    stop: CancellationToken,
) -> impl AsyncFnOnce() + Send + 'static {
    async move || {
        let listeners: io::Result<Vec<_>> = listeners
            .into_iter()
            .map(|(listener, address)| Listener::new(listener, address))
            .collect();
        match listeners {
            Ok(listeners) => Worker::new(shared, seat, listeners, sign).run(stop).await,
            // The worker ends, which its owner sees.
            Err(error) => error!(%error, "a listener can't be watched for connections"),
        }
    }
}

/// Where clients come in.
pub(crate) struct Listener {
    socket: AsyncFd<TcpListener>,
    address: ListenAddr,
}

impl Listener {
    #[expect(
        deprecated,
        reason = "the unsoundness is about types that may close their descriptor early, which \
                  this one never does; the replacement is unsafe to call"
    )]
    fn new(socket: TcpListener, address: ListenAddr) -> io::Result<Self> {
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket, address })
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(TcpStream, ClientAddr)>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            if let Ok(accepted) = ready.try_io(|socket| accept_now(socket.get_ref())) {
                return Poll::Ready(accepted.map(|(stream, from)| (stream, ClientAddr(from))));
            }
        }
    }
}

/// What came of accepting.
struct Accepted {
    stream: io::Result<(TcpStream, ClientAddr)>,
    listener: ListenAddr,
    room: OwnedSemaphorePermit,
}

/// The next connection, as soon as there is room for it; the rest waits in the backlog.
async fn accept(listeners: &[Listener], room: &Arc<Semaphore>, not_before: Instant) -> Accepted {
    if listeners.is_empty() {
        return pending().await;
    }
    if not_before > Instant::now() {
        sleep_until(not_before).await;
    }
    let room = match Arc::clone(room).try_acquire_owned() {
        Ok(room) => room,
        Err(_) => match Arc::clone(room).acquire_owned().await {
            Ok(room) => room,
            // The semaphore is never closed.
            Err(_) => return pending().await,
        },
    };
    let (stream, listener) = poll_fn(|cx| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready((accepted, listener.address));
            }
        }
        Poll::Pending
    })
    .await;
    Accepted {
        stream,
        listener,
        room,
    }
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

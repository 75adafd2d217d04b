//! The way to one peer: connections with it, made when they are wanted.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::MeshNode;
use edgemesh_plan::Exits;
use edgemesh_wire::{ALPN, Hello};
use futures_util::future::OptionFuture;
use iroh::address_lookup::MemoryLookup;
use iroh::endpoint::Connection;
use iroh::{Endpoint, EndpointAddr};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::codes;
use crate::counters::Counters;
use crate::fault::OpenFault;
use crate::peer_address::endpoint_id;
use crate::relay_book::RelayBook;
use crate::session::{Serving, Session};
use crate::settings::{Limits, Timing};
use crate::ways_named::WaysNamed;
use crate::ways_to_dial::{is_own, ways_to_dial};

/// Connections with one peer at a time. Both ends may begin one at the same moment, and a
/// later run of its agent comes beside the earlier.
const MOST_SESSIONS: usize = 4;
/// Between two attempts to reach a peer that somebody wants.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// A peer that nobody has wanted for this long is not tried again.
const WANTED_FOR: Duration = Duration::from_secs(30);
/// How long a silent connection may take to follow a peer that is found by other ways now.
const MOVED: Duration = Duration::from_secs(4);
/// How long the agent after one that ended may take before the peer counts as down.
const SUCCESSION: Duration = Duration::from_secs(2);
/// Connections that the peer has begun and that wait to be taken over.
const MOST_ADOPTED: usize = 8;

/// What connections are made with.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) endpoint: Endpoint,
    /// Told where peers are.
    pub(crate) lookup: MemoryLookup,
    /// By what peers are reached.
    pub(crate) book: RelayBook,
    /// What the cluster knows, of this node, too.
    pub(crate) exits: watch::Receiver<Arc<Exits>>,
}

/// The way to a peer, as those see it who open streams.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Sender<State>,
    wanted: Notify,
    adopted: mpsc::Sender<Connection>,
    mesh_node: watch::Sender<Arc<MeshNode>>,
    /// Streams that this node may open to it.
    pub(crate) places: Arc<Semaphore>,
    ending: CancellationToken,
}

/// How the way to a peer is.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Nobody wants it, or nobody did for a while.
    Idle,
    /// It is being made.
    Connecting,
    /// It is there.
    Up(Arc<Session>),
    /// The peer does not answer; it is being tried again.
    Down,
}

impl Link {
    /// The way to `mesh_node`, and its owner.
    pub(crate) fn new(
        mesh_node: Arc<MeshNode>,
        transport: Transport,
        serving: Serving,
        limits: &Limits,
        timing: Timing,
        counters: Arc<Counters>,
        stop: &CancellationToken,
    ) -> (Arc<Self>, LinkOwner) {
        let (adopted, adopted_here) = mpsc::channel(MOST_ADOPTED);
        let mesh_node = watch::Sender::new(mesh_node);
        let mesh_node_here = mesh_node.subscribe();
        let boot_id = Arc::clone(&mesh_node.borrow().boot_id);
        let mut ways_named = WaysNamed::default();
        ways_named.add(&mesh_node.borrow());
        let link = Arc::new(Self {
            state: watch::Sender::new(State::Idle),
            wanted: Notify::new(),
            adopted,
            mesh_node,
            places: Arc::new(Semaphore::new(limits.streams_out_per_peer)),
            ending: stop.child_token(),
        });
        let owner = LinkOwner {
            link: Arc::clone(&link),
            transport,
            serving,
            timing,
            counters,
            mesh_node: mesh_node_here,
            adopted: adopted_here,
            changed: Arc::default(),
            sessions: Vec::new(),
            serving_tasks: JoinSet::new(),
            last_wanted: None,
            failed_at: None,
            boot_id,
            told: None,
            ways_named,
            moved_at: None,
            farewell_at: None,
        };
        (link, owner)
    }

    /// A connection that streams can be opened on.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, OpenFault> {
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                State::Up(session) if session.is_usable() => {
                    if session.is_worn() {
                        self.wanted.notify_one();
                    }
                    return Ok(session);
                }
                State::Down => {
                    // It goes on being tried for our sake, but nobody waits for it.
                    self.wanted.notify_one();
                    return Err(OpenFault::PeerDown);
                }
                State::Up(_) | State::Idle | State::Connecting => self.wanted.notify_one(),
            }
            tokio::select! {
                biased;
                () = self.ending.cancelled() => return Err(OpenFault::UnknownPeer),
                changed = states.changed() => changed.map_err(|_| OpenFault::UnknownPeer)?,
            }
        }
    }

    /// Waits until there is another connection with the peer than `session`, which is silent,
    /// worn or belongs to a run of its agent that is over.
    pub(crate) async fn better_than(&self, session: &Arc<Session>) {
        self.other_than(session, || {
            session.is_second_choice() || !session.is_usable()
        })
        .await;
    }

    /// Waits until there is another connection with the peer than `session`, which is worn.
    pub(crate) async fn fresher_than(&self, session: &Arc<Session>) {
        self.other_than(session, || session.is_worn() && !session.is_superseded())
            .await;
    }

    async fn other_than(&self, session: &Arc<Session>, is_wanted: impl Fn() -> bool) {
        let is_better = |state: &State| match state {
            State::Up(other) => !Arc::ptr_eq(other, session) && is_wanted(),
            State::Idle | State::Connecting | State::Down => false,
        };
        let mut states = self.state.subscribe();
        if states.wait_for(is_better).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is known of the peer has changed.
    pub(crate) fn update(&self, mesh_node: Arc<MeshNode>) {
        self.mesh_node.send_if_modified(|known| {
            let changed = *known != mesh_node;
            if changed {
                *known = mesh_node;
            }
            changed
        });
    }

    /// Takes over a connection that the peer has begun.
    pub(crate) fn adopt(&self, connection: Connection) {
        if let Err(refused) = self.adopted.try_send(connection) {
            refused
                .into_inner()
                .close(codes::SUPERSEDED, b"too many connections at once");
        }
    }

    /// It is a peer no more.
    pub(crate) fn end(&self) {
        self.ending.cancel();
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn mesh_node(&self) -> Arc<MeshNode> {
        Arc::clone(&self.mesh_node.borrow())
    }
}

/// Owns the connections with one peer.
#[derive(Debug)]
pub(crate) struct LinkOwner {
    link: Arc<Link>,
    transport: Transport,
    serving: Serving,
    timing: Timing,
    counters: Arc<Counters>,
    mesh_node: watch::Receiver<Arc<MeshNode>>,
    adopted: mpsc::Receiver<Connection>,
    changed: Arc<Notify>,
    /// Oldest first.
    sessions: Vec<Arc<Session>>,
    serving_tasks: JoinSet<()>,
    last_wanted: Option<Instant>,
    failed_at: Option<Instant>,
    /// The run of the peer's agent that its MeshNode named last.
    boot_id: Arc<str>,
    /// By what the transport was told to find it.
    told: Option<EndpointAddr>,
    /// By what its MeshNode has named.
    ways_named: WaysNamed,
    /// When it last named a way that it had not named before.
    moved_at: Option<Instant>,
    /// When an agent of the peer's last said that it ends.
    farewell_at: Option<Instant>,
}

type Connecting = Pin<Box<dyn Future<Output = Option<Connection>> + Send>>;

impl LinkOwner {
    /// Runs until the peer is one no more, or the tunnel ends.
    pub(crate) async fn run(mut self) {
        let link = Arc::clone(&self.link);
        let changed = Arc::clone(&self.changed);
        let mut connecting: OptionFuture<Connecting> = None.into();
        let mut is_connecting = false;
        loop {
            if !is_connecting && self.should_connect_now() {
                connecting = Some(self.connect()).into();
                is_connecting = true;
            }
            self.publish(is_connecting);
            let retry = !is_connecting && self.is_wanted();
            let retry_at = self.retry_at();
            tokio::select! {
                biased;
                () = link.ending.cancelled() => break,
                Some(connection) = self.adopted.recv() => self.add(connection),
                Some(connected) = &mut connecting, if is_connecting => {
                    connecting = None.into();
                    is_connecting = false;
                    self.connected(connected);
                }
                Some(ended) = self.serving_tasks.join_next() => self.forget_closed(ended.err()),
                () = changed.notified() => self.sessions_changed(),
                Ok(()) = self.mesh_node.changed() => {
                    if self.mesh_node_changed() && is_connecting {
                        // The attempt under way does not know of it.
                        connecting = None.into();
                        is_connecting = false;
                    }
                }
                () = link.wanted.notified() => self.last_wanted = Some(Instant::now()),
                () = sleep_until(retry_at), if retry => {}
            }
        }
        let mesh_node = Arc::clone(&self.mesh_node.borrow());
        if let Some(id) = endpoint_id(&mesh_node.public_key) {
            self.transport.lookup.remove_endpoint_info(id);
        }
        let code = if self.transport.endpoint.is_closed() {
            codes::ENDING
        } else {
            codes::NOT_A_PEER
        };
        for session in &self.sessions {
            session.close(code, b"");
        }
        self.serving_tasks.shutdown().await;
    }

    /// The newest connection that lives, one with the peer's last run if there is any, and one
    /// that is not worn.
    fn usable(&self) -> Option<&Arc<Session>> {
        let newest_first = || self.sessions.iter().rev().filter(|s| s.is_usable());
        newest_first()
            .find(|session| !session.is_second_choice())
            .or_else(|| newest_first().find(|session| !session.is_superseded()))
            .or_else(|| newest_first().next())
    }

    fn is_wanted(&self) -> bool {
        let wanted = self.last_wanted.is_some_and(|at| at.elapsed() < WANTED_FOR);
        let has_current = self
            .usable()
            .is_some_and(|session| !session.is_second_choice());
        !has_current && (wanted || self.sessions.iter().any(|s| s.streams() > 0))
    }

    fn should_connect_now(&self) -> bool {
        self.is_wanted() && self.retry_at() <= Instant::now()
    }

    fn retry_at(&self) -> Instant {
        self.failed_at
            .map_or_else(Instant::now, |failed| failed + RETRY_AFTER)
    }

    fn publish(&self, is_connecting: bool) {
        let state = match self.usable() {
            Some(session) => State::Up(Arc::clone(session)),
            None if !self.is_wanted() => State::Idle,
            // A peer that was there, or was tried in vain, is known to be down; only the first
            // attempt is waited for, and an agent that said farewell is often followed by
            // another.
            None if self.is_known_to_be_down() => State::Down,
            None if is_connecting => State::Connecting,
            None => State::Idle,
        };
        self.link.state.send_if_modified(|known| {
            let changed = match (&*known, &state) {
                (State::Up(known), State::Up(new)) => !Arc::ptr_eq(known, new),
                (State::Idle, State::Idle)
                | (State::Connecting, State::Connecting)
                | (State::Down, State::Down) => false,
                _ => true,
            };
            if changed {
                debug!(?state, "the way to the peer");
                *known = state;
            }
            changed
        });
    }

    fn is_known_to_be_down(&self) -> bool {
        let said_farewell = self.sessions.iter().any(|session| session.said_farewell());
        let follows = said_farewell || self.farewell_at.is_some_and(|at| at.elapsed() < SUCCESSION);
        let silent = self.sessions.iter().any(|session| !session.is_closed());
        !follows && (self.failed_at.is_some() || silent)
    }

    fn connect(&mut self) -> Connecting {
        for session in &self.sessions {
            let moved = self.moved_at.filter(|at| at.elapsed() >= MOVED);
            let moved = moved.is_some_and(|at| session.fell_silent_before(at));
            if session.is_hopeless(self.timing.given_up) || moved {
                session.close(codes::SUPERSEDED, b"nothing was heard of you");
            }
        }
        let endpoint = self.transport.endpoint.clone();
        let address = self.tell_address();
        self.told.clone_from(&address);
        let mesh_node = Arc::clone(&self.mesh_node.borrow());
        let within = self.timing.connect;
        Box::pin(async move {
            match timeout(within, endpoint.connect(address?, ALPN)).await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => {
                    debug!(peer = %mesh_node.name, %error, "the peer is not to be reached");
                    None
                }
                Err(_) => {
                    debug!(peer = %mesh_node.name, ?within, "the peer does not answer");
                    None
                }
            }
        })
    }

    /// Tells the transport by what the peer can be reached now.
    fn tell_address(&self) -> Option<EndpointAddr> {
        let Transport { lookup, book, .. } = &self.transport;
        let all = book.get().address_of(&self.mesh_node.borrow())?;
        let exits = Arc::clone(&self.transport.exits.borrow());
        // What this node said last, also while it cannot find out its public address.
        let own = exits.catalog().mesh_node(&exits.policy().node);
        let own = own.map_or(&[][..], |own| &own.addresses);
        let listening = self.transport.endpoint.bound_sockets();
        let address = ways_to_dial(all, own, |ip| is_own(ip, &listening));
        lookup.set_endpoint_info(address.clone());
        Some(address)
    }

    fn connected(&mut self, connection: Option<Connection>) {
        match connection {
            Some(connection) => self.add(connection),
            None => {
                self.counters.connect_failed();
                self.failed_at = Some(Instant::now());
            }
        }
    }

    fn add(&mut self, connection: Connection) {
        self.failed_at = None;
        self.counters.peer_connected();
        let session = Session::new(
            connection,
            Arc::clone(&self.counters),
            Arc::clone(&self.changed),
        );
        if self.sessions.len() >= MOST_SESSIONS {
            let oldest = self.sessions.remove(0);
            oldest.close(codes::SUPERSEDED, b"too many connections at once");
        }
        self.sessions.push(Arc::clone(&session));
        self.close_replaced();
        self.serving_tasks
            .spawn(session.serve(self.serving.clone()));
    }

    fn forget_closed(&mut self, panic: Option<tokio::task::JoinError>) {
        if let Some(panic) = panic {
            error!(%panic, "the task of a connection panicked; the connection was closed");
        }
        let said_farewell = self.sessions.iter().any(|session| session.said_farewell());
        if said_farewell {
            self.farewell_at = Some(Instant::now());
        }
        self.sessions.retain(|session| !session.is_closed());
    }

    /// The cluster says something new about the peer: where it is, or that it was started
    /// again. Tells whether it is to be found by other ways than before.
    fn mesh_node_changed(&mut self) -> bool {
        self.failed_at = None;
        let boot_id = Arc::clone(&self.mesh_node.borrow_and_update().boot_id);
        // Also for a connection whose paths have all failed.
        let told = self.told.take();
        self.told = self.tell_address();
        let is_elsewhere = self.told != told;
        if self.ways_named.add(&self.mesh_node.borrow()) {
            self.moved_at = Some(Instant::now());
        }
        if self.boot_id == boot_id {
            return is_elsewhere;
        }
        self.boot_id = Arc::clone(&boot_id);
        for session in &self.sessions {
            let is_earlier = |hello: Hello| *hello.boot_id_text() != *boot_id;
            if session.hello().is_some_and(is_earlier) {
                session.supersede();
            }
        }
        is_elsewhere
    }

    /// Closes connections that are worn and not used any more, where there is another.
    fn close_replaced(&self) {
        if self
            .usable()
            .is_some_and(|usable| !usable.is_second_choice())
        {
            let worn = self.sessions.iter().filter(|session| session.is_worn());
            for session in worn.filter(|session| session.streams() == 0) {
                session.close_replaced();
            }
        }
    }

    /// Somebody said hello, fell silent or is heard again, or nobody uses a worn connection.
    fn sessions_changed(&mut self) {
        self.close_replaced();
        let Some((newest, earlier)) = self.sessions.split_last() else {
            return;
        };
        let Some(now) = newest.hello() else {
            return;
        };
        for session in earlier {
            if session.hello().is_some_and(|then| then != now) {
                info!(peer = %self.mesh_node.borrow().name, "a later run of the peer's agent is there");
                session.supersede();
            }
        }
    }
}

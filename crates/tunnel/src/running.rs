//! The tunnel's start, its tasks, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgemesh_catalog::{Catalog, NodeName, PublicKey};
use edgemesh_plan::{Exits, Reachability};
use edgemesh_sockets::OutwardSockets;
use edgemesh_wire::{ALPN, Hello};
use iroh::address_lookup::MemoryLookup;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::acceptor::accept;
use crate::counters::Counters;
use crate::endpoint_options::{BindFault, EndpointOptions, bind_endpoint};
use crate::exit::Exit;
use crate::identity::NodeKey;
use crate::jobs::Jobs;
use crate::own_threads::OwnThreads;
use crate::peer_book::{PeerBook, Peers};
use crate::presence::{Presence, PresenceOptions};
use crate::relay_dialer::RelayDialer;
use crate::relay_trust::RelayTrust;
use crate::settings::Settings;
use crate::tcp_carrier::{Carrier, CarrierOptions, keep_listening, side_door};
use crate::tunnel::{Inner, Tunnel};

/// How long peers may take to learn that this node is going.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long those that began lately may take once no new ones are taken.
const LAST_STREAMS: Duration = Duration::from_millis(500);
/// How long peers may take to read what was sent last.
const LAST_READS: Duration = Duration::from_millis(300);
/// How long its own tasks may take once they were told to end.
const LAST_TASKS: Duration = Duration::from_secs(5);
/// How often is looked whether the last stream has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the key that a peer had before is still its own: connections made with it are at
/// an agent that is ending, and none may take longer for that.
const PREVIOUS_KEY_FOR: Duration = Duration::from_secs(3600);
/// How often is looked whether that time is over.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// The tunnel's tasks. Nothing runs any more when it is dropped.
#[derive(Debug)]
pub struct Running {
    inner: Arc<Inner>,
    tasks: JoinSet<&'static str>,
    /// Dropped last.
    _threads: OwnThreads,
}

/// Where the tunnel learns and tells who is a peer.
#[derive(Debug)]
struct Follower {
    inner: Arc<Inner>,
    book: PeerBook,
    own: NodeName,
    own_keys: Vec<PublicKey>,
    exits: watch::Receiver<Arc<Exits>>,
    peers: watch::Sender<Arc<Peers>>,
    reachability: watch::Sender<Reachability>,
    /// What was followed last.
    followed: Option<Catalog>,
    /// Since when peers have another key than before.
    rotated: BTreeMap<NodeName, Instant>,
}

/// Why the tunnel could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has no thread.
    #[error(
        "start the tunnel's threads; see the limits of this process and of its control group (ulimit -n, ulimit -u, pids.max)"
    )]
    Threads(#[source] io::Error),
    /// It has no socket.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// TLS for the second carrier cannot be set up.
    #[error(
        "set up TLS for TCP connections with peers; modules.edgeTunnel.tcpCarrier: off does without"
    )]
    Tls(#[source] tokio_rustls::rustls::Error),
    /// There was no chance to be had for the boot id.
    #[error("ask the system for random numbers")]
    NoChance(#[source] io::Error),
}

impl Tunnel {
    /// Opens the tunnel's socket and starts all its tasks, which run on threads of their own until
    /// [`Running::shut_down`]. What moves much is carried in the runtime that this is called in.
    /// `exits` is followed from then on.
    ///
    /// # Errors
    ///
    /// When the socket is not to be had.
    pub async fn start(
        settings: Settings,
        key: NodeKey,
        exits: watch::Receiver<Arc<Exits>>,
    ) -> Result<(Self, Running), StartError> {
        let threads = OwnThreads::start().map_err(StartError::Threads)?;
        let at = threads.handle().clone();
        let starting = start(settings, key, exits, at, Handle::current());
        let (inner, tasks) = threads.run(starting).await?;
        Ok((
            Self(Arc::clone(&inner)),
            Running {
                inner,
                tasks,
                _threads: threads,
            },
        ))
    }
}

/// Starts all tasks in this runtime, `threads`; `lanes` is the one in which lanes are used.
async fn start(
    settings: Settings,
    key: NodeKey,
    exits: watch::Receiver<Arc<Exits>>,
    threads: Handle,
    lanes: Handle,
) -> Result<(Arc<Inner>, JoinSet<&'static str>), StartError> {
    let hello = Hello {
        boot_id: boot_id().map_err(StartError::NoChance)?,
    };
    let previous = key.previous().map(|previous| previous.public_key);
    let own_keys = [Some(key.public()), previous]
        .into_iter()
        .flatten()
        .collect();
    let lookup = MemoryLookup::new();
    let trust = RelayTrust::default();
    let dialer = RelayDialer::bind().await.map_err(BindFault::RelayDialer)?;
    let endpoint = bind_endpoint(&EndpointOptions {
        key: key.clone(),
        alpns: vec![ALPN.to_vec()],
        bind: settings.bind,
        port: settings.listen_port,
        advertise: settings.advertise.clone(),
        lookup: lookup.clone(),
        trust: trust.clone(),
        relay_dialer: Some(dialer.address()),
    })
    .await?;
    let counters = Arc::new(Counters::default());
    let carrier_key = key.clone();
    let (to_lanes, side_entrance) = side_door();
    // Where the relay listens already, it passes on who comes for a lane.
    let relay_port = settings.relay.as_ref().map(|relay| relay.listen.port());
    let mut lanes_at = endpoint.bound_sockets();
    lanes_at.retain(|at| Some(at.port()) != relay_port);
    let (jobs, job_owner) = Jobs::new();
    let peers = watch::Sender::new(Arc::new(Peers::default()));
    let reachability = watch::Sender::new(Reachability::default());
    let stop = CancellationToken::new();
    let (presence, of_presence) = Presence::new(
        PresenceOptions {
            node: settings.node.clone(),
            key,
            endpoint: endpoint.clone(),
            trust,
            dialer: Some(dialer),
            relay_nodes: settings.relay_nodes,
            relay: settings.relay,
            lanes: settings.tcp_carrier.then_some(to_lanes),
            advertise: settings.advertise,
            never: settings.never,
            version: settings.version,
            boot_id: hello.boot_id_text().into(),
            peers: peers.subscribe(),
            exits: exits.clone(),
        },
        &stop,
    );
    let sockets = OutwardSockets::new(settings.mark);
    let carrier = settings.tcp_carrier.then(|| {
        Carrier::new(CarrierOptions {
            key: carrier_key,
            sockets,
            peers: peers.subscribe(),
            runtime: lanes,
            counters: Arc::clone(&counters),
        })
    });
    let carrier = carrier.transpose().map_err(StartError::Tls)?.map(Arc::new);
    let exit = Exit::new(
        exits.clone(),
        sockets,
        settings.timing,
        &settings.limits,
        carrier.clone(),
        Arc::clone(&counters),
    );
    let inner = Arc::new(Inner {
        threads,
        endpoint,
        lookup,
        presence,
        hello,
        limits: settings.limits,
        timing: settings.timing,
        keep_alive: settings.keep_alive,
        counters,
        exit: Arc::new(exit),
        carrier: carrier.clone(),
        jobs,
        places: Arc::new(Semaphore::new(settings.limits.streams_out)),
        exits: exits.clone(),
        peers: peers.subscribe(),
        reachability: reachability.subscribe(),
        links: Mutex::new(BTreeMap::new()),
        stop: stop.clone(),
    });
    let follower = Follower {
        inner: Arc::clone(&inner),
        book: PeerBook::default(),
        own: settings.node,
        own_keys,
        exits,
        peers,
        reachability,
        followed: None,
        rotated: BTreeMap::new(),
    };
    let mut tasks = JoinSet::new();
    for (name, task) in of_presence {
        tasks.spawn(named(name, task));
    }
    tasks.spawn(named(
        "the tunnel's follower of the cluster",
        follower.run(),
    ));
    tasks.spawn(named(
        "the tunnel's acceptor",
        accept(Arc::clone(&inner), stop.clone()),
    ));
    if let Some(carrier) = carrier {
        let listener = keep_listening(carrier, lanes_at, side_entrance, stop.clone());
        tasks.spawn(named("the tunnel's listener for lanes", listener));
    }
    tasks.spawn(named("the tunnel's owner of tasks", job_owner.run(stop)));
    Ok((inner, tasks))
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

impl Running {
    /// Runs until a task ends that never should; tells which.
    pub async fn failed(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name.to_owned(),
            Some(Err(panic)) => panic.to_string(),
            None => "the tunnel".to_owned(),
        }
    }

    /// Waits until the TCP streams that go on have ended or `grace` is over, says farewell to
    /// the peers and ends. Until then new streams are served as ever, for peers know no other
    /// way to this node's endpoints as long as a connection with it is open. UDP flows, which
    /// know no end, are not waited for. Returns how many TCP streams were cut.
    pub async fn shut_down(mut self, grace: Duration) -> u64 {
        let counters = Arc::clone(&self.inner.counters);
        counters.begin_ending();
        let _ = timeout(grace, ended(|| counters.earlier_tcp())).await;
        self.inner.exit.drain();
        let _ = timeout(LAST_STREAMS, ended(|| counters.all_tcp())).await;
        let cut = counters.all_tcp();
        // What a peer has received, but not read yet, is lost when the connection is closed
        // (RFC 9000 section 10.2).
        sleep(LAST_READS).await;
        if timeout(FAREWELL, self.inner.endpoint.close())
            .await
            .is_err()
        {
            debug!("some peers did not hear that this node is going");
        }
        self.inner.stop.cancel();
        let left = still_running(&mut self.tasks, LAST_TASKS).await;
        if left > 0 {
            warn!(
                left,
                "tasks of the tunnel did not end when they were told to, and are ended"
            );
        }
        info!(cut, "the tunnel is closed");
        cut
    }
}

/// Waits until all tasks have ended, for `patience` at most; tells how many have not.
async fn still_running(tasks: &mut JoinSet<&'static str>, patience: Duration) -> usize {
    let ended = async { while tasks.join_next().await.is_some() {} };
    // Time being up is no error but what is told.
    let _ = timeout(patience, ended).await;
    tasks.len()
}

/// Waits until none goes on.
async fn ended(going_on: impl Fn() -> u64) {
    let mut looks = interval(LOOK_EVERY);
    while going_on() > 0 {
        looks.tick().await;
    }
}

impl Follower {
    async fn run(mut self) {
        let mut forget = interval(FORGET_EVERY);
        loop {
            self.follow();
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                _ = forget.tick() => self.forget_previous_keys(),
                changed = self.exits.changed() => if changed.is_err() {
                    // The agent is ending; what was believed last stays.
                    return self.inner.stop.cancelled().await;
                },
            }
        }
    }

    fn follow(&mut self) {
        let exits = Arc::clone(&self.exits.borrow_and_update());
        if exits.catalog().is_empty() && !self.reachability.borrow().has_tunnel() {
            // Nobody has looked yet. "No peers" would be taken for the cluster's word.
            return;
        }
        let catalog = exits.catalog();
        if self
            .followed
            .as_ref()
            .is_some_and(|followed| catalog.has_nodes_of(followed))
        {
            return;
        }
        self.followed = Some(catalog.clone());
        let peers = Arc::new(self.book.follow(catalog, &self.own, &self.own_keys));
        self.note_rotations(&peers);
        let reachability = Reachability::with_peers(peers.iter().map(|peer| peer.name().clone()));
        self.peers.send_if_modified(|known| {
            let changed = *known != peers;
            *known = Arc::clone(&peers);
            changed
        });
        self.inner.follow(&peers);
        self.reachability.send_if_modified(|known| {
            let changed = *known != reachability;
            *known = reachability;
            changed
        });
    }
}

impl Follower {
    fn note_rotations(&mut self, peers: &Peers) {
        let rotated: BTreeSet<_> = peers
            .iter()
            .filter(|peer| peer.previous.is_some())
            .map(|peer| peer.name().clone())
            .collect();
        self.rotated.retain(|node, _| rotated.contains(node));
        for node in rotated {
            self.rotated.entry(node).or_insert_with(Instant::now);
        }
    }

    fn forget_previous_keys(&mut self) {
        let over = |since: &Instant| since.elapsed() >= PREVIOUS_KEY_FOR;
        let due: Vec<_> = self
            .rotated
            .iter()
            .filter(|(_, since)| over(since))
            .collect();
        for (node, _) in &due {
            self.book.forget_previous(node);
        }
        if !due.is_empty() {
            // To be followed anew.
            self.followed = None;
        }
    }
}

fn boot_id() -> io::Result<[u8; Hello::LENGTH]> {
    let mut id = [0; Hello::LENGTH];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_when_it_is_told_to_is_not_waited_for() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { "ends" });
        tasks.spawn(std::future::pending());
        assert_eq!(still_running(&mut tasks, LAST_TASKS).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_task_that_ends_is_all_that_is_waited_for() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { "ends" });
        assert_eq!(still_running(&mut tasks, Duration::MAX).await, 0);
    }
}

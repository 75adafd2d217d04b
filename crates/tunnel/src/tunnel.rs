//! The tunnel as its users see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edgemesh_catalog::{MeshNode, NodeName, ServicePortName};
use edgemesh_plan::{Exits, Reachability};
use edgemesh_wire::{Hello, Request};
use iroh::Endpoint;
use iroh::address_lookup::MemoryLookup;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::exit::{Exit, Quota};
use crate::fault::OpenFault;
use crate::first_bytes::FirstBytes;
use crate::jobs::Jobs;
use crate::link::{Link, State, Transport};
use crate::open::{NotConnected, Opened, TunnelStream, connect};
use crate::peer_book::{Peers, RefusedPeer};
use crate::peer_status::PeerStatus;
use crate::peer_stream::PeerStream;
use crate::presence::Presence;
use crate::relay_counters::RelayCounters;
use crate::session::{Serving, Session};
use crate::settings::{Limits, Timing};
use crate::tcp_carrier::Carrier;
use crate::udp_flow::UdpFlow;

/// Streams that a peer may have under way beyond its share, while they are being refused.
const REFUSED_AT_ONCE: usize = 256;

/// Connections with a peer that are tried for one stream.
const MOST_ATTEMPTS: usize = 4;
/// How long a peer that takes no new streams may take to say farewell.
const FAREWELL_AFTER: Duration = Duration::from_secs(1);

/// Which endpoint is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service port whose client asks.
    pub service_port: ServicePortName,
    /// Address and port of the endpoint.
    pub endpoint: SocketAddr,
}

/// Opens streams to endpoints of other nodes. Copies are the same tunnel.
#[derive(Clone, Debug)]
pub struct Tunnel(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    /// Where its connections live.
    pub(crate) threads: Handle,
    pub(crate) endpoint: Endpoint,
    pub(crate) lookup: MemoryLookup,
    pub(crate) presence: Presence,
    pub(crate) hello: Hello,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) keep_alive: bool,
    pub(crate) counters: Arc<Counters>,
    pub(crate) exit: Arc<Exit>,
    /// The second carrier, unless it is off.
    pub(crate) carrier: Option<Arc<Carrier>>,
    pub(crate) jobs: Jobs,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) exits: watch::Receiver<Arc<Exits>>,
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    pub(crate) reachability: watch::Receiver<Reachability>,
    pub(crate) links: Mutex<BTreeMap<NodeName, Arc<Link>>>,
    pub(crate) stop: CancellationToken,
}

impl Tunnel {
    /// Connects with an endpoint of `node`. The client's `first` bytes go along, if there are
    /// any by then or while the answer is awaited.
    ///
    /// # Errors
    ///
    /// Why it is not to be had. Not one byte has gone to the endpoint then, unless
    /// [`FirstBytes::may_be_delivered`] says so.
    pub fn open_tcp(
        &self,
        node: &NodeName,
        target: Target,
        first: FirstBytes,
    ) -> impl Future<Output = Result<TunnelStream, OpenFault>> + Send + 'static {
        let inner = Arc::clone(&self.0);
        let node = node.clone();
        async move {
            let connected = inner.connect(&node, &target.into_request(), first).await;
            match &connected {
                Ok(_) => inner.counters.stream_opened(),
                Err(fault) => inner.counters.open_failed_for(*fault),
            }
            connected
        }
    }

    /// The runtime in which its connections live. Who carries streams does so there: each byte of
    /// them comes from there.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.0.threads
    }

    /// A UDP flow to an endpoint of `node`. It is there at once and keeps the first datagrams
    /// while its way is being made; what the exit says to it comes as the flow's end.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn open_udp(&self, node: &NodeName, target: Target) -> Result<UdpFlow, OpenFault> {
        let inner = &self.0;
        inner
            .link(node)
            .inspect_err(|fault| inner.counters.open_failed_for(*fault))?;
        let (opener, node) = (Arc::clone(inner), node.clone());
        let (flow, task) = UdpFlow::new(
            target.into_request(),
            Arc::clone(&inner.counters),
            async move {
                let opened = opener.open(&node).await;
                match &opened {
                    Ok(_) => opener.counters.stream_opened(),
                    Err(fault) => opener.counters.open_failed_for(*fault),
                }
                opened
            },
        );
        inner.jobs.start(task);
        Ok(flow)
    }

    /// Which nodes are reached through the tunnel; changes with the believed MeshNodes.
    #[must_use]
    pub fn reachability(&self) -> watch::Receiver<Reachability> {
        self.0.reachability.clone()
    }

    /// What this node is to publish of itself, renewed whenever that changes; none until its
    /// addresses are known.
    #[must_use]
    pub fn own_record(&self) -> watch::Receiver<Option<MeshNode>> {
        self.0.presence.own.clone()
    }

    /// What the relay of this node has done; all zero when it is none.
    #[must_use]
    pub fn relay_counters(&self) -> Arc<RelayCounters> {
        Arc::clone(&self.0.presence.relay_counters)
    }

    /// Which run of the agent this is, as the MeshNode shows it.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.0.hello.boot_id_text()
    }

    /// The addresses that its socket has; peers get the best of them from the MeshNode.
    #[must_use]
    pub fn listening_at(&self) -> Vec<SocketAddr> {
        self.0.endpoint.bound_sockets()
    }

    /// Who is believed and who is not; changes with the cluster's MeshNodes.
    #[must_use]
    pub fn believed(&self) -> watch::Receiver<Arc<Peers>> {
        self.0.peers.clone()
    }

    /// MeshNodes that are not believed, and why.
    #[must_use]
    pub fn refused(&self) -> Vec<RefusedPeer> {
        self.0.peers.borrow().refused().to_vec()
    }

    /// The peers that this node has, or had, to do with.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let links: Vec<_> = self.0.links().values().cloned().collect();
        let detours = &self.0.presence.detours;
        let status = |link: &Arc<Link>| PeerStatus::of(link, detours);
        links.iter().map(status).collect()
    }

    /// Nodes that are believed.
    #[must_use]
    pub fn known_peers(&self) -> usize {
        self.0.peers.borrow().iter().len()
    }

    /// What the tunnel has counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.0.counters)
    }
}

impl Target {
    fn into_request(self) -> Request {
        Request {
            service_port: self.service_port,
            endpoint: self.endpoint,
        }
    }
}

impl Inner {
    /// Connects; anew where the connection with the peer ended before the answer: an agent that
    /// ends has often been followed by another one already.
    async fn connect(
        &self,
        node: &NodeName,
        request: &Request,
        mut first: FirstBytes,
    ) -> Result<TunnelStream, OpenFault> {
        let mut attempts = 1;
        loop {
            let opened = self.open(node).await?;
            let session = Arc::clone(opened.session());
            let link = self.link(node)?;
            let carrier = self.carrier.clone();
            // Of one that was silent the answer may be lost, and nothing is lost by asking anew.
            let along = match session.is_worn() {
                true => FirstBytes::default(),
                false => first.clone(),
            };
            let fault = tokio::select! {
                biased;
                // Asked in the moment in which it is closed, it could not answer any more.
                () = std::future::ready(()), if session.is_draining() => Some(OpenFault::Draining),
                connected = connect(opened, Arc::clone(&link), request, carrier, &along) => match connected {
                    Ok(connected) => return Ok(connected),
                    Err(NotConnected::Fault(fault)) => Some(fault),
                    Err(NotConnected::NotAtOnce) => {
                        first = FirstBytes::default();
                        continue;
                    }
                },
                // Not one byte has gone to the endpoint, so another may be asked.
                () = better_and_free(&link, &session, &first) => None,
            };
            if first.may_be_delivered() {
                return Err(fault.unwrap_or(OpenFault::PeerDown));
            }
            let ended = match fault {
                Some(OpenFault::Draining) => timeout(FAREWELL_AFTER, session.connection.closed())
                    .await
                    .is_ok(),
                Some(fault) => fault == OpenFault::PeerDown && !session.is_current(),
                None => true,
            };
            if !ended || attempts == MOST_ATTEMPTS {
                return Err(fault.unwrap_or(OpenFault::PeerDown));
            }
            attempts += 1;
        }
    }

    /// A stream to `node`, on which nothing has been asked for yet.
    async fn open(&self, node: &NodeName) -> Result<Opened, OpenFault> {
        let link = self.link(node)?;
        let busy = |_| OpenFault::Busy;
        let of_all = Arc::clone(&self.places).try_acquire_owned().map_err(busy)?;
        let of_peer = Arc::clone(&link.places).try_acquire_owned().map_err(busy)?;
        let (session, stream) = open_on(&link).await?;
        Ok(Opened::new(
            PeerStream::new(stream),
            session.count_stream(),
            [of_all, of_peer],
            self.counters.using(),
        ))
    }

    /// The way to a node, made if there was none.
    pub(crate) fn link(&self, node: &NodeName) -> Result<Arc<Link>, OpenFault> {
        // First the lock, then who is a peer: `follow` comes after each change.
        let mut links = self.links();
        let peers = Arc::clone(&self.peers.borrow());
        let peer = peers.node(node).ok_or(OpenFault::UnknownPeer)?;
        if let Some(link) = links.get(node) {
            return Ok(Arc::clone(link));
        }
        let (link, owner) = Link::new(
            Arc::clone(&peer.mesh_node),
            Transport {
                endpoint: self.endpoint.clone(),
                lookup: self.lookup.clone(),
                book: self.presence.book.clone(),
                exits: self.exits.clone(),
            },
            self.serving(),
            &self.limits,
            self.timing,
            Arc::clone(&self.counters),
            &self.stop,
        );
        self.jobs.start(owner.run());
        links.insert(node.clone(), Arc::clone(&link));
        Ok(link)
    }

    /// Brings the ways in line with who is a peer now.
    pub(crate) fn follow(&self, peers: &Peers) {
        self.links().retain(|node, link| match peers.node(node) {
            Some(peer) => {
                link.update(Arc::clone(&peer.mesh_node));
                true
            }
            None => {
                link.end();
                false
            }
        });
    }

    fn serving(&self) -> Serving {
        Serving {
            exit: Arc::clone(&self.exit),
            quota: Quota::of_one_peer(&self.limits),
            // With a question about each one, of either side (see `unread_pieces`).
            most_streams: 2 * self.limits.streams_in_per_peer
                + self.limits.streams_out_per_peer
                + REFUSED_AT_ONCE,
            hello: self.hello,
            quiet_after: self.timing.quiet,
            unused_after: (!self.keep_alive).then_some(self.timing.unused),
        }
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, BTreeMap<NodeName, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until there is a better connection with the peer than `session`, and no endpoint can
/// have got the client's first bytes by that one.
async fn better_and_free(link: &Link, session: &Arc<Session>, first: &FirstBytes) {
    link.better_than(session).await;
    first.free().await;
}

/// Opens a stream. A connection may be closed for want of use in the moment it is wanted;
/// nothing has been asked for yet, so another one is as good.
async fn open_on(
    link: &Link,
) -> Result<
    (
        Arc<Session>,
        (iroh::endpoint::SendStream, iroh::endpoint::RecvStream),
    ),
    OpenFault,
> {
    for _ in 0..3 {
        let session = link.session().await?;
        if let Ok(stream) = session.connection.open_bi().await {
            return Ok((session, stream));
        }
    }
    Err(OpenFault::PeerDown)
}

impl State {
    /// The connection, when there is one.
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Up(session) => Some(session),
            Self::Idle | Self::Connecting | Self::Down => None,
        }
    }
}

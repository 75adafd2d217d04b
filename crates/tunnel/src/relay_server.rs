//! The relay inside the agent: carries packets between nodes that cannot reach each other.
//!
//! What it carries is encrypted from end to end; it sees who speaks with whom and how much.
//! Packets travel in a WebSocket over plain HTTP, so that a firewall which lets a single
//! TCP port out is enough. Only peers may use it.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::PublicKey;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::address_discovery::{AddressDiscovery, DiscoveryFault};
use crate::identity::NodeKey;
use crate::peer_book::Peers;
use crate::relay_book::RelayBook;
use crate::relay_counters::RelayCounters;
use crate::relay_door::keep_door;
use crate::relay_rooms::RelayRooms;
use crate::tcp_carrier::SideDoor;

/// TCP port of the relay unless told otherwise: the number of the tunnel's UDP port.
pub const RELAY_PORT: u16 = 20_006;
/// UDP port of address discovery unless told otherwise.
pub const DISCOVERY_PORT: u16 = 20_009;

/// Between two attempts to open the sockets, while somebody else has them.
const BIND_AGAIN: Duration = Duration::from_millis(500);
/// Between two attempts to cut clients that were just coming in.
const CUT_AGAIN: Duration = Duration::from_millis(100);
/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 1024;

/// What a client may send unless told otherwise, in bytes per second. Who has a gigabit link is
/// not slowed down, and who has a faster one leaves others room. A lower limit would cost more
/// than throughput: from whoever reaches it the relay reads nothing for up to 100 ms
/// (iroh-relay's `Bucket` is filled that often), and requests wait behind bulk data.
const CLIENT_BYTES_PER_SECOND: NonZeroU32 = NonZeroU32::new(128 << 20).unwrap();

/// How this node is a relay.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// TCP address of the relay. Default `[::]:20006`, which is for IPv4, too.
    pub listen: SocketAddr,
    /// UDP address of address discovery. Default `[::]:20009`, which is for IPv4, too.
    pub discovery: SocketAddr,
    /// What one client may send, in bytes per second; more waits. Default 128 MiB/s, a
    /// little more than a gigabit link carries.
    pub client_bytes_per_second: NonZeroU32,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            listen: (Ipv6Addr::UNSPECIFIED, RELAY_PORT).into(),
            discovery: (Ipv6Addr::UNSPECIFIED, DISCOVERY_PORT).into(),
            client_bytes_per_second: CLIENT_BYTES_PER_SECOND,
        }
    }
}

/// Where the relay listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenRelay {
    /// TCP: the relay.
    pub(crate) relay: SocketAddr,
    /// UDP: address discovery.
    pub(crate) discovery: SocketAddr,
}

/// The relay of this node.
#[derive(Debug)]
pub(crate) struct RelayServer {
    settings: RelaySettings,
    key: NodeKey,
    counters: Arc<RelayCounters>,
    /// The other relays, for which it stands in while they are away.
    others: RelayBook,
    /// Where those go who come to its port for a lane.
    lanes: Option<SideDoor>,
    open: watch::Sender<Option<OpenRelay>>,
}

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayFault {
    #[error("open TCP socket {address} for the relay")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Discovery(#[from] DiscoveryFault),
}

impl RelayServer {
    pub(crate) fn new(settings: RelaySettings, key: NodeKey, counters: Arc<RelayCounters>) -> Self {
        Self {
            settings,
            key,
            counters,
            others: RelayBook::new(),
            lanes: None,
            open: watch::Sender::new(None),
        }
    }

    /// It stands in for the relays of this book while they are away; for none otherwise.
    pub(crate) fn standing_in_for(mut self, others: RelayBook) -> Self {
        self.others = others;
        self
    }

    /// Passes on who comes to its port for a lane; they are refused otherwise.
    pub(crate) fn passing_on(mut self, lanes: Option<SideDoor>) -> Self {
        self.lanes = lanes;
        self
    }

    /// Where it listens; none while it does not.
    pub(crate) fn open(&self) -> watch::Receiver<Option<OpenRelay>> {
        self.open.subscribe()
    }

    /// Is the relay for `peers`, until `stop`. A port that somebody else has, as the agent
    /// before does while it hands over, is tried again until it is free.
    pub(crate) async fn run(self, peers: watch::Receiver<Arc<Peers>>, stop: CancellationToken) {
        let sockets = tokio::select! {
            () = stop.cancelled() => return,
            sockets = self.sockets() => sockets,
        };
        let (listener, discovery, at) = sockets;
        info!(relay = %at.relay, discovery = %at.discovery, "this node is a relay");
        let rooms = RelayRooms::new(
            self.others.clone(),
            Arc::clone(&self.counters),
            self.settings.client_bytes_per_second,
        );
        let ending = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let counters = Arc::clone(&self.counters);
        let lanes = self.lanes.clone();
        let rooms_here = rooms.clone();
        tasks.spawn(keep_door(
            listener,
            rooms_here,
            counters,
            lanes,
            ending.clone(),
        ));
        tasks.spawn(discovery.run(ending.clone()));
        self.open.send_replace(Some(at));
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow(&rooms, peers) => {}
            Some(ended) = tasks.join_next() => {
                error!(?ended, "a part of the relay has ended by itself: this node is no relay \
                     until the agent is started again");
            }
        }
        self.open.send_replace(None);
        ending.cancel();
        rooms.shutdown().await;
        while tasks.join_next().await.is_some() {}
    }

    /// Admits the peers as they come and go. Ends when nobody tells any more.
    async fn follow(&self, rooms: &RelayRooms, mut peers: watch::Receiver<Arc<Peers>>) {
        loop {
            rooms.admit(self.admitted(&peers.borrow_and_update()));
            while rooms.cut_strangers() {
                sleep(CUT_AGAIN).await;
            }
            if peers.changed().await.is_err() {
                return;
            }
        }
    }

    /// All peers, by the keys that they have or had; and this node, which is a client of its
    /// own relay like any other.
    fn admitted(&self, peers: &Peers) -> BTreeSet<PublicKey> {
        let mut keys: BTreeSet<_> = peers.keys().copied().collect();
        keys.insert(self.key.public());
        keys.extend(self.key.previous().map(|previous| previous.public_key));
        keys
    }

    async fn sockets(&self) -> (TcpListener, AddressDiscovery, OpenRelay) {
        let mut told = false;
        loop {
            match self.try_sockets() {
                Ok(sockets) => return sockets,
                Err(error) if !told => {
                    told = true;
                    let error: &dyn std::error::Error = &error;
                    warn!(error, "this node cannot be a relay yet; it tries again");
                }
                Err(_) => {}
            }
            sleep(BIND_AGAIN).await;
        }
    }

    fn try_sockets(&self) -> Result<(TcpListener, AddressDiscovery, OpenRelay), RelayFault> {
        let address = self.settings.listen;
        let failed = |source| RelayFault::Bind { address, source };
        let listener = with_ipv4_instead(address, listen).map_err(failed)?;
        let relay = listener.local_addr().map_err(failed)?;
        let address = self.settings.discovery;
        let key = &self.key;
        let bind = |at| AddressDiscovery::bind(at, key, Arc::clone(&self.counters));
        let places = with_ipv4_instead(address, bind)?;
        let discovery = places.local_addr().map_err(failed)?;
        Ok((listener, places, OpenRelay { relay, discovery }))
    }
}

/// What `open` opens at `address`, or at all of IPv4 on a host that has no IPv6.
fn with_ipv4_instead<T, E>(
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> Result<T, E>,
) -> Result<T, E> {
    let opened = open(address);
    if opened.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED {
        return open((Ipv4Addr::UNSPECIFIED, address.port()).into()).or(opened);
    }
    opened
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections that have ended keep a port for a minute otherwise.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
#[path = "relay_server_tests.rs"]
mod tests;

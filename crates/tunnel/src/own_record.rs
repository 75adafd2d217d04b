//! What this node says of itself: its `MeshNode`, as its addresses, its relay and the
//! cluster change.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{Catalog, MeshNode, NodeName, RelayServer};
use edgemesh_plan::Exits;
use futures_util::{FutureExt, StreamExt};
use iroh::endpoint::RelayStatus;
use iroh::{Endpoint, RelayUrl, Watcher};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::identity::NodeKey;
use crate::own_addresses::OwnAddresses;
use crate::relay_book::{RelayBook, Relays};
use crate::relay_server::OpenRelay;

/// At least so long between two looks: a word wakes all agents of the cluster, and addresses
/// change in bursts when an interface comes or goes.
const APART: Duration = Duration::from_millis(500);
/// The same before the first words, for which all wait who want to reach this node: who it is,
/// its address as relays see it, and its relay, which lets in only whose first word it has heard.
const APART_AT_FIRST: [Duration; 4] = [Duration::from_millis(20); 4];

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub(crate) struct OwnFacts {
    /// This node.
    pub(crate) node: NodeName,
    /// Its key, and the key before.
    pub(crate) key: NodeKey,
    /// Version of the agent.
    pub(crate) version: Arc<str>,
    /// Which run of the agent this is.
    pub(crate) boot_id: Arc<str>,
    /// Addresses by which others reach it although it does not have them itself.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Addresses that never leave this host.
    pub(crate) never: Vec<IpAddr>,
}

/// The task that says it.
#[derive(Debug)]
pub(crate) struct OwnRecord {
    pub(crate) facts: OwnFacts,
    pub(crate) endpoint: Endpoint,
    pub(crate) book: RelayBook,
    pub(crate) exits: watch::Receiver<Arc<Exits>>,
    pub(crate) own_relay: watch::Receiver<Option<OpenRelay>>,
    pub(crate) told: watch::Sender<Option<MeshNode>>,
}

/// What is said from.
struct Now<'a> {
    found: Vec<SocketAddr>,
    everywhere: [Option<u16>; 2],
    /// The relay at which this node is connected, or was last.
    home: Option<&'a RelayUrl>,
    relays: &'a Relays,
    own_relay: Option<OpenRelay>,
    catalog: &'a Catalog,
}

impl OwnRecord {
    /// Says it as soon as the cluster has a Node for it, and whenever it changes, until
    /// `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut addresses = self.endpoint.watch_addr().stream();
        let mut statuses = self.endpoint.home_relay_status().stream();
        let mut relays = self.book.follow();
        let mut home = None;
        let mut words = 0;
        loop {
            words += usize::from(self.say(home.as_ref()));
            let apart = APART_AT_FIRST.get(words).copied().unwrap_or(APART);
            let not_before = Instant::now() + apart;
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = addresses.next() => {}
                Some(status) = statuses.next() => home = connected(&status).or(home),
                Ok(()) = relays.changed() => {}
                Ok(()) = self.exits.changed() => {}
                Ok(()) = self.own_relay.changed() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(not_before) => {}
            }
            // What changed meanwhile is said with it.
            while let Some(Some(status)) = statuses.next().now_or_never() {
                home = connected(&status).or(home);
            }
        }
    }

    /// Whether that is something new.
    fn say(&mut self, home: Option<&RelayUrl>) -> bool {
        let exits = Arc::clone(&self.exits.borrow_and_update());
        let own_relay = *self.own_relay.borrow_and_update();
        if exits.catalog().node(&self.facts.node).is_none() {
            // Without its Node it is nobody's peer; and as long as the cluster is not known,
            // nothing tells which of its addresses are its pods'.
            return false;
        }
        let relays = self.book.get();
        let said = self.facts.mesh_node(&Now {
            found: self.endpoint.addr().ip_addrs().copied().collect(),
            everywhere: everywhere(&self.endpoint.bound_sockets()),
            home,
            relays: &relays,
            own_relay,
            catalog: exits.catalog(),
        });
        self.told.send_if_modified(|told| {
            let changed = told.as_ref() != Some(&said);
            *told = Some(said);
            changed
        })
    }
}

impl OwnFacts {
    fn mesh_node(&self, now: &Now<'_>) -> MeshNode {
        let addresses = OwnAddresses {
            node: &self.node,
            advertised: &self.advertise,
            never: &self.never,
            catalog: now.catalog,
        };
        let addresses = addresses.best_first(now.found.iter().copied(), now.everywhere);
        let node = now.catalog.node(&self.node);
        let pod_cidrs = node.map_or_else(Vec::new, |node| node.pod_cidrs.clone());
        let relay_url = now.home.and_then(|url| now.relays.public_url(url));
        MeshNode {
            name: self.node.clone(),
            uid: None,
            public_key: self.key.public(),
            name_signature: Some(Box::new(self.key.sign_name(&self.node))),
            addresses,
            relay_url: relay_url.map(|url| url.as_str().into()),
            relay_server: relay_server(now),
            pod_cidrs: pod_cidrs
                .into_iter()
                .take(MeshNode::MAX_POD_CIDRS)
                .collect(),
            // Whoever answers probes says where.
            probe: None,
            version: Arc::clone(&self.version),
            boot_id: Arc::clone(&self.boot_id),
            previous_key: self.key.previous().cloned().map(Box::new),
        }
    }
}

/// This node as a relay, while it is one that others can reach.
fn relay_server(now: &Now<'_>) -> Option<Box<RelayServer>> {
    let open = now.own_relay?;
    let urls = now.relays.own_urls().take(MeshNode::MAX_RELAY_URLS);
    let urls: Vec<_> = urls.map(|url| url.as_str().into()).collect();
    (!urls.is_empty()).then(|| {
        Box::new(RelayServer {
            urls,
            address_discovery_port: open.discovery.port(),
        })
    })
}

/// The relay that this node is connected with. While there is none, peers had better try the
/// one before: it may come back, and it may know where this node is.
fn connected(status: &[RelayStatus]) -> Option<RelayUrl> {
    let home = status.iter().find(|relay| relay.is_connected())?;
    Some(home.url().clone())
}

/// The ports at which all addresses are listened at, of IPv4 and of IPv6.
fn everywhere(sockets: &[SocketAddr]) -> [Option<u16>; 2] {
    let port = |is_family: fn(&SocketAddr) -> bool| {
        let of_family = sockets.iter().filter(|socket| is_family(socket));
        let mut unspecified = of_family.filter(|socket| socket.ip().is_unspecified());
        unspecified.next().map(SocketAddr::port)
    };
    [port(SocketAddr::is_ipv4), port(SocketAddr::is_ipv6)]
}

#[cfg(test)]
#[path = "own_record_tests.rs"]
mod tests;

//! This node among the others: which relays it uses, whether it is one, and what it says of
//! itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::{MeshNode, NodeName};
use edgemesh_plan::Exits;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use iroh::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::identity::NodeKey;
use crate::own_record::{OwnFacts, OwnRecord};
use crate::peer_book::Peers;
use crate::relay_book::{RelayBook, RelayNode};
use crate::relay_counters::RelayCounters;
use crate::relay_detours::RelayDetours;
use crate::relay_dialer::RelayDialer;
use crate::relay_server::{RelayServer, RelaySettings};
use crate::relay_trust::RelayTrust;
use crate::relays::RelayKeeper;
use crate::tcp_carrier::SideDoor;

/// What presence is made from.
#[derive(Debug)]
pub(crate) struct PresenceOptions {
    /// This node.
    pub(crate) node: NodeName,
    /// Its key.
    pub(crate) key: NodeKey,
    /// The transport, made with `trust`.
    pub(crate) endpoint: Endpoint,
    /// Told whom to believe.
    pub(crate) trust: RelayTrust,
    /// By what relays are dialled; none when the transport does that itself.
    pub(crate) dialer: Option<RelayDialer>,
    /// The relay nodes of the configuration.
    pub(crate) relay_nodes: Vec<RelayNode>,
    /// How this node is a relay, if it is one.
    pub(crate) relay: Option<RelaySettings>,
    /// Where its relay passes on who comes to its port for a lane.
    pub(crate) lanes: Option<SideDoor>,
    /// UDP addresses by which others reach it although it does not have them itself.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Addresses that never leave this host, such as the one that portals lead to.
    pub(crate) never: Vec<IpAddr>,
    /// Version of the agent.
    pub(crate) version: Arc<str>,
    /// Which run of the agent this is.
    pub(crate) boot_id: Arc<str>,
    /// Who is believed.
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    /// What the cluster says.
    pub(crate) exits: watch::Receiver<Arc<Exits>>,
}

/// What others see of it.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    /// By what peers are reached.
    pub(crate) book: RelayBook,
    /// Which relays are away.
    pub(crate) detours: RelayDetours,
    /// What this node says of itself; none until it is known.
    pub(crate) own: watch::Receiver<Option<MeshNode>>,
    /// What its relay has done.
    pub(crate) relay_counters: Arc<RelayCounters>,
}

/// A task with its name.
pub(crate) type NamedTask = (&'static str, BoxFuture<'static, ()>);

impl Presence {
    /// Readies it. Nothing happens before the tasks run, each of which ends with `stop`.
    pub(crate) fn new(
        options: PresenceOptions,
        stop: &CancellationToken,
    ) -> (Self, Vec<NamedTask>) {
        let mut tasks: Vec<NamedTask> = Vec::new();
        let relay_counters = Arc::new(RelayCounters::default());
        let book = RelayBook::new();
        let detours = RelayDetours::new();
        let mut own_relay = watch::channel(None).1;
        if let Some(settings) = options.relay {
            warn_of_unreachable(&options.relay_nodes, &options.node);
            let counters = Arc::clone(&relay_counters);
            let server = RelayServer::new(settings, options.key.clone(), counters)
                .standing_in_for(book.clone())
                .passing_on(options.lanes);
            own_relay = server.open();
            let task = server.run(options.peers.clone(), stop.clone());
            tasks.push(("the relay", task.boxed()));
        }
        if let Some(dialer) = options.dialer {
            let task = dialer.run(book.clone(), detours.clone(), stop.clone());
            tasks.push(("the tunnel's dialer of relays", task.boxed()));
        }
        let keeper = RelayKeeper {
            endpoint: options.endpoint.clone(),
            own: options.node.clone(),
            named: options.relay_nodes,
            trust: options.trust,
            book: book.clone(),
            detours: detours.clone(),
        };
        let task = keeper.run(options.peers, own_relay.clone(), stop.clone());
        tasks.push(("the tunnel's keeper of relays", task.boxed()));
        let told = watch::Sender::new(None);
        let own = told.subscribe();
        let record = OwnRecord {
            facts: OwnFacts {
                node: options.node,
                key: options.key,
                version: options.version,
                boot_id: options.boot_id,
                advertise: options.advertise,
                never: options.never,
            },
            endpoint: options.endpoint,
            book: book.clone(),
            exits: options.exits,
            own_relay,
            told,
        };
        let task = record.run(stop.clone());
        tasks.push(("the tunnel's own record", task.boxed()));
        let presence = Self {
            book,
            detours,
            own,
            relay_counters,
        };
        (presence, tasks)
    }
}

fn warn_of_unreachable(relay_nodes: &[RelayNode], node: &NodeName) {
    let mut own = relay_nodes.iter().filter(|entry| entry.node == *node);
    if own.all(|entry| entry.addresses.is_empty()) {
        warn!(
            "this node is to be a relay, but nothing says by which address others reach it: \
             nobody will use it until relayNodes has its advertiseAddress"
        );
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;

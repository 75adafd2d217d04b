//! What the task that probes is told at its start, and what it follows.

use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::NodeName;
use edgemesh_plan::{Exits, Reachability};
use edgemesh_tunnel::{NodeKey, Peers};
use tokio::sync::{mpsc, watch};

use crate::overrides::OverrideRule;
use crate::prober::NetworkChange;
use crate::timing::Timing;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeName,
    /// How peers are probed, and probes of theirs answered; none: not at all.
    pub probing: Option<Probing>,
    /// What the operator says, whatever probes tell; the first that fits counts.
    pub overrides: Vec<OverrideRule>,
}

/// How peers are probed, and probes of theirs answered.
#[derive(Clone, Debug)]
pub struct Probing {
    /// This node's key.
    pub key: NodeKey,
    /// UDP port at which probes are answered.
    pub port: u16,
    /// Firewall mark (`SO_MARK`) of all sockets.
    pub mark: Option<u32>,
    /// Addresses of this host that never mean it to others.
    pub never: Vec<IpAddr>,
    /// When is probed.
    pub timing: Timing,
    /// Spreads the probes of all nodes in time.
    pub seed: u64,
}

/// What it follows.
#[derive(Debug)]
pub struct Inputs {
    /// The catalog.
    pub exits: watch::Receiver<Arc<Exits>>,
    /// Who is believed.
    pub peers: watch::Receiver<Arc<Peers>>,
    /// What the tunnel tells of who is reached through it.
    pub tunnel: watch::Receiver<Reachability>,
    /// What happens meanwhile.
    pub news: mpsc::Receiver<News>,
}

/// Something that may change how peers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// This host's network changed.
    Network(NetworkChange),
    /// An address of this host may have come or gone.
    Addresses,
    /// A connection to an endpoint that is reached natively failed in the network.
    DialFailed {
        /// The endpoint's node.
        node: NodeName,
        /// The endpoint's address.
        endpoint: IpAddr,
    },
}

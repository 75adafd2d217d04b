//! By which way this node reaches the endpoints of each node.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use edgemesh_catalog::NodeName;

/// Which nodes are reached through the tunnel; all others are reached natively.
///
/// The default is that of an agent without a tunnel. Copies share their content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// None: there is no tunnel.
    peers: Option<Arc<BTreeSet<NodeName>>>,
}

/// The way to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// This node dials it.
    Native,
    /// The endpoint's own node dials it, at the other end of the tunnel.
    Tunnel,
}

/// Why an endpoint is reached the way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WayReason {
    /// It runs on this node.
    OwnNode,
    /// It runs on no node of the cluster, so nobody else could dial it.
    NoNode,
    /// This agent has no tunnel.
    NoTunnel,
    /// Its node is no peer: no agent there that this one believes.
    NoPeer,
    /// Its node is a peer.
    Peer,
}

impl WayReason {
    /// The way that follows from it.
    #[must_use]
    pub fn way(self) -> Way {
        match self {
            WayReason::OwnNode | WayReason::NoNode | WayReason::NoTunnel | WayReason::NoPeer => {
                Way::Native
            }
            WayReason::Peer => Way::Tunnel,
        }
    }
}

impl Reachability {
    /// The reachability of an agent whose tunnel leads to these nodes.
    #[must_use]
    pub fn with_peers(peers: impl IntoIterator<Item = NodeName>) -> Self {
        Self {
            peers: Some(Arc::new(peers.into_iter().collect())),
        }
    }

    /// Whether there is a tunnel, if only one that leads nowhere yet.
    #[must_use]
    pub fn has_tunnel(&self) -> bool {
        self.peers.is_some()
    }

    /// The nodes that are reached through the tunnel, sorted; none without a tunnel.
    pub fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.iter().flat_map(|peers| &**peers)
    }

    /// Why an endpoint on `node` is reached from `own` the way it is.
    #[must_use]
    pub fn reason(&self, own: &NodeName, node: Option<&NodeName>) -> WayReason {
        match (node, &self.peers) {
            (None, _) => WayReason::NoNode,
            // Whatever the tunnel claims, what is here is not sent away.
            (Some(node), _) if node == own => WayReason::OwnNode,
            (Some(_), None) => WayReason::NoTunnel,
            (Some(node), Some(peers)) if peers.contains(node) => WayReason::Peer,
            (Some(_), Some(_)) => WayReason::NoPeer,
        }
    }

    /// The way from `own` to an endpoint on `node`.
    #[must_use]
    pub fn way(&self, own: &NodeName, node: Option<&NodeName>) -> Way {
        self.reason(own, node).way()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Native => "natively",
            Way::Tunnel => "through the tunnel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name)
    }

    fn reason(reachability: &Reachability, of: Option<&str>) -> WayReason {
        reachability.reason(&node("here"), of.map(node).as_ref())
    }

    #[test]
    fn only_peers_are_reached_through_the_tunnel() {
        let peers = Reachability::with_peers([node("cloud")]);
        assert_eq!(reason(&peers, Some("cloud")), WayReason::Peer);
        assert_eq!(reason(&peers, Some("elsewhere")), WayReason::NoPeer);
        assert_eq!(peers.way(&node("here"), Some(&node("cloud"))), Way::Tunnel);
        assert_eq!(peers.way(&node("here"), Some(&node("x"))), Way::Native);
    }

    #[test]
    fn what_is_here_or_outside_the_cluster_never_takes_the_tunnel() {
        let peers = Reachability::with_peers([node("here"), node("")]);
        assert_eq!(reason(&peers, Some("here")), WayReason::OwnNode);
        assert_eq!(reason(&peers, None), WayReason::NoNode);
    }

    #[test]
    fn without_a_tunnel_everything_is_native() {
        let none = Reachability::default();
        assert_eq!(reason(&none, Some("cloud")), WayReason::NoTunnel);
        assert_eq!(none.peers().count(), 0);
        assert_ne!(none, Reachability::with_peers([]));
        assert!(!none.has_tunnel() && Reachability::with_peers([]).has_tunnel());
    }
}

//! By which way this node reaches the endpoints of each node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::NodeName;
use ipnet::IpNet;

/// Which endpoints are reached through the tunnel; all others are reached natively.
///
/// The default is that of an agent without a tunnel. Copies share their content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// None: there is no tunnel.
    peers: Option<Arc<BTreeSet<NodeName>>>,
    /// Where peers have proved their key without the tunnel, and whatever is there with them.
    verified: Arc<BTreeMap<NodeName, Arc<[IpNet]>>>,
    /// The operator's word, the first that fits counts.
    overrides: Arc<[Override]>,
}

/// The operator's word for how endpoints of peers are reached
/// (`modules.edgeProxy.reachability.overrides`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Which endpoints it is about.
    pub scope: OverrideScope,
    /// How they are reached.
    pub way: Way,
}

/// Which endpoints an [`Override`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverrideScope {
    /// Those on these nodes.
    Nodes(BTreeSet<NodeName>),
    /// Those with addresses in one of these networks.
    Networks(Vec<IpNet>),
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
    /// Its node is a peer that has not proved to be reached without the tunnel.
    Peer,
    /// Its node is a peer that has proved its key from where the endpoint is, without the
    /// tunnel.
    Verified,
    /// Its node is a peer, and the operator says that it is reached without the tunnel.
    HintedDirect,
    /// Its node is a peer, and the operator says that it is reached through the tunnel.
    HintedTunnel,
}

impl WayReason {
    /// The way that follows from it.
    #[must_use]
    pub fn way(self) -> Way {
        match self {
            WayReason::OwnNode
            | WayReason::NoNode
            | WayReason::NoTunnel
            | WayReason::NoPeer
            | WayReason::Verified
            | WayReason::HintedDirect => Way::Native,
            WayReason::Peer | WayReason::HintedTunnel => Way::Tunnel,
        }
    }
}

impl Override {
    /// Whether it is about an endpoint with the address `ip` on `node`.
    #[must_use]
    pub fn fits(&self, node: &NodeName, ip: IpAddr) -> bool {
        match &self.scope {
            OverrideScope::Nodes(nodes) => nodes.contains(node),
            OverrideScope::Networks(networks) => holds(networks, ip),
        }
    }
}

impl Reachability {
    /// The reachability of an agent whose tunnel leads to these nodes.
    #[must_use]
    pub fn with_peers(peers: impl IntoIterator<Item = NodeName>) -> Self {
        Self {
            peers: Some(Arc::new(peers.into_iter().collect())),
            ..Self::default()
        }
    }

    /// The same, with what peers have proved: the networks in which the endpoints of a node
    /// are reached as its agent was, without the tunnel. It says nothing of nodes that are
    /// no peers.
    #[must_use]
    pub fn with_verified(self, verified: Arc<BTreeMap<NodeName, Arc<[IpNet]>>>) -> Self {
        Self { verified, ..self }
    }

    /// The same, with the operator's word, which goes before any proof. The first that fits
    /// an endpoint counts.
    #[must_use]
    pub fn with_overrides(self, overrides: Arc<[Override]>) -> Self {
        Self { overrides, ..self }
    }

    /// Whether there is a tunnel, if only one that leads nowhere yet.
    #[must_use]
    pub fn has_tunnel(&self) -> bool {
        self.peers.is_some()
    }

    /// The nodes that can be reached through the tunnel, sorted; none without a tunnel.
    pub fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.iter().flat_map(|peers| &**peers)
    }

    /// In which networks the endpoints of a node are reached without the tunnel, by proof.
    #[must_use]
    pub fn verified(&self, node: &NodeName) -> &[IpNet] {
        self.verified.get(node).map_or(&[], |networks| networks)
    }

    /// Why an endpoint with the address `ip` on `node` is reached from `own` the way it is.
    #[must_use]
    pub fn reason(&self, own: &NodeName, node: Option<&NodeName>, ip: IpAddr) -> WayReason {
        match (node, &self.peers) {
            (None, _) => WayReason::NoNode,
            // Whatever the tunnel claims, what is here is not sent away.
            (Some(node), _) if node == own => WayReason::OwnNode,
            (Some(_), None) => WayReason::NoTunnel,
            (Some(node), Some(peers)) if peers.contains(node) => self.of_peer(node, ip),
            (Some(_), Some(_)) => WayReason::NoPeer,
        }
    }

    /// The way from `own` to an endpoint with the address `ip` on `node`.
    #[must_use]
    pub fn way(&self, own: &NodeName, node: Option<&NodeName>, ip: IpAddr) -> Way {
        self.reason(own, node, ip).way()
    }

    fn of_peer(&self, node: &NodeName, ip: IpAddr) -> WayReason {
        let hint = self.overrides.iter().find(|known| known.fits(node, ip));
        match hint.map(|hint| hint.way) {
            Some(Way::Native) => WayReason::HintedDirect,
            Some(Way::Tunnel) => WayReason::HintedTunnel,
            None if holds(self.verified(node), ip) => WayReason::Verified,
            None => WayReason::Peer,
        }
    }
}

fn holds(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Native => "natively",
            Way::Tunnel => "through the tunnel",
        })
    }
}

/// What follows "natively:" or "through the tunnel:".
impl fmt::Display for WayReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WayReason::OwnNode => "on this node",
            WayReason::NoNode => "on no node of the cluster",
            WayReason::NoTunnel => "modules.edgeTunnel is not enabled here",
            WayReason::NoPeer => "its node is no peer of the tunnel",
            WayReason::Peer => "its node's agent has not proved its key without the tunnel",
            WayReason::Verified => "its node's agent proved its key there, without the tunnel",
            WayReason::HintedDirect | WayReason::HintedTunnel => {
                "modules.edgeProxy.reachability.overrides says so"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name)
    }

    fn reason_at(reachability: &Reachability, of: Option<&str>, ip: &str) -> WayReason {
        let ip = ip.parse().unwrap();
        reachability.reason(&node("here"), of.map(node).as_ref(), ip)
    }

    fn reason(reachability: &Reachability, of: Option<&str>) -> WayReason {
        reason_at(reachability, of, "10.244.1.2")
    }

    fn networks(texts: &[&str]) -> Arc<[IpNet]> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn verified<const N: usize>(of: [(&str, &[&str]); N]) -> Arc<BTreeMap<NodeName, Arc<[IpNet]>>> {
        Arc::new(of.map(|(name, of)| (node(name), networks(of))).into())
    }

    fn override_of(scope: OverrideScope, way: Way) -> Override {
        Override { scope, way }
    }

    #[test]
    fn only_peers_are_reached_through_the_tunnel() {
        let peers = Reachability::with_peers([node("cloud")]);
        assert_eq!(reason(&peers, Some("cloud")), WayReason::Peer);
        assert_eq!(reason(&peers, Some("elsewhere")), WayReason::NoPeer);
        assert_eq!(WayReason::Peer.way(), Way::Tunnel);
        assert_eq!(WayReason::NoPeer.way(), Way::Native);
    }

    #[test]
    fn what_is_here_or_outside_the_cluster_never_takes_the_tunnel() {
        let all = OverrideScope::Networks(networks(&["0.0.0.0/0"]).to_vec());
        let peers = Reachability::with_peers([node("here"), node("")])
            .with_overrides([override_of(all, Way::Tunnel)].into());
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

    #[test]
    fn proof_counts_for_the_node_that_gave_it_and_the_networks_that_it_is_about() {
        let proved = Reachability::with_peers([node("cloud"), node("edge")])
            .with_verified(verified([("cloud", &["10.244.1.0/24", "203.0.113.5/32"])]));
        let of = |name, ip| reason_at(&proved, Some(name), ip);
        assert_eq!(of("cloud", "10.244.1.2"), WayReason::Verified);
        assert_eq!(of("cloud", "203.0.113.5"), WayReason::Verified);
        // Of the other family, of another network, and of another node at the same address.
        assert_eq!(of("cloud", "fd00::2"), WayReason::Peer);
        assert_eq!(of("cloud", "10.244.2.2"), WayReason::Peer);
        assert_eq!(of("edge", "10.244.1.2"), WayReason::Peer);
        assert_eq!(WayReason::Verified.way(), Way::Native);
        assert_eq!(proved.verified(&node("edge")), []);
    }

    #[test]
    fn proof_of_who_is_no_peer_any_more_counts_for_nothing() {
        let gone =
            Reachability::with_peers([]).with_verified(verified([("cloud", &["10.244.0.0/16"])]));
        assert_eq!(reason(&gone, Some("cloud")), WayReason::NoPeer);
    }

    #[test]
    fn first_word_of_the_operator_that_fits_goes_before_any_proof() {
        let edges = OverrideScope::Nodes([node("edge")].into());
        let vpn = OverrideScope::Networks(networks(&["10.244.0.0/16"]).to_vec());
        let told = Reachability::with_peers([node("cloud"), node("edge")])
            .with_verified(verified([("edge", &["10.244.1.0/24"])]))
            .with_overrides(
                [
                    override_of(edges, Way::Tunnel),
                    override_of(vpn, Way::Native),
                ]
                .into(),
            );
        assert_eq!(reason(&told, Some("edge")), WayReason::HintedTunnel);
        assert_eq!(reason(&told, Some("cloud")), WayReason::HintedDirect);
        assert_eq!(
            reason_at(&told, Some("cloud"), "192.0.2.1"),
            WayReason::Peer
        );
    }
}

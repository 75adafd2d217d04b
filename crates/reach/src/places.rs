//! At which addresses peers are probed, and what an answer from there proves. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, MeshNode, NodeName, ProbePlaces, PublicKey};
use edgemesh_plan::Override;
use edgemesh_tunnel::{Peer, Peers};
use ipnet::IpNet;

/// A pod network is proved by so many addresses at the most.
const ADDRESSES_OF_A_NETWORK: usize = 2;

/// Where a peer is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerPlaces {
    /// The key that it has to prove.
    pub(crate) key: PublicKey,
    /// Which run of its agent is there.
    pub(crate) boot_id: Arc<str>,
    /// UDP port at which it answers.
    pub(crate) port: u16,
    /// For each address the networks in which its endpoints are reached as that address is.
    pub(crate) places: BTreeMap<IpAddr, Arc<[IpNet]>>,
}

/// What is known of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// The addresses of its interfaces.
    pub(crate) interfaces: BTreeSet<IpAddr>,
    /// Those that never mean it to others, such as the one that portals lead to.
    pub(crate) never: Vec<IpAddr>,
}

/// Where to probe whom: peers that answer probes and have endpoints in the catalog, each at
/// addresses of its own that tell something of those endpoints.
///
/// What could be this very host is left out: its own addresses, and networks that reach into
/// its own, where whatever answers is in the wrong place. Endpoints of which the operator says
/// how they are reached are no reason to probe: it may be for networks that forbid it.
pub(crate) fn places(
    catalog: &Catalog,
    peers: &Peers,
    overrides: &[Override],
    own_node: &NodeName,
    own: &Own,
) -> BTreeMap<NodeName, PeerPlaces> {
    let own_networks: &[IpNet] = catalog.node(own_node).map_or(&[], |node| &node.pod_cidrs);
    let is_ours = |network: &IpNet| {
        own_networks.iter().any(|own| overlap(own, network))
            || own.interfaces.iter().any(|ip| network.contains(ip))
    };
    let mut candidates: BTreeMap<&NodeName, (&Peer, Candidates)> = peers
        .iter()
        .filter_map(|peer| {
            let candidates = Candidates::of(catalog, peer, is_ours)?;
            Some((peer.name(), (&**peer, candidates)))
        })
        .collect();
    for endpoint in catalog.slices().flat_map(|slice| &slice.endpoints) {
        if let Some(node) = &endpoint.node
            && let Some((_, candidates)) = candidates.get_mut(node)
            && !overrides.iter().any(|of| of.fits(node, endpoint.address))
        {
            candidates.want(endpoint.address);
        }
    }
    candidates
        .into_iter()
        .filter_map(|(name, (peer, candidates))| Some((name.clone(), candidates.wanted(peer)?)))
        .collect()
}

/// The places of one peer, and which of them are worth probing.
struct Candidates {
    port: u16,
    networks: Vec<(IpNet, Vec<IpAddr>, bool)>,
}

impl Candidates {
    fn of(catalog: &Catalog, peer: &Peer, is_ours: impl Fn(&IpNet) -> bool) -> Option<Self> {
        let probe = peer.mesh_node.probe.as_deref()?;
        let node = catalog.node(peer.name())?;
        // The cluster's word goes before the peer's own.
        let pods = if node.pod_cidrs.is_empty() {
            &peer.mesh_node.pod_cidrs
        } else {
            &node.pod_cidrs
        };
        let of_pods = pods.iter().map(|network| {
            let inside = probe
                .pod_addresses
                .iter()
                .filter(|ip| network.contains(*ip));
            let inside = inside.take(ADDRESSES_OF_A_NETWORK).copied().collect();
            (*network, inside, false)
        });
        let of_node = node
            .addresses
            .iter()
            .map(|ip| (IpNet::from(*ip), vec![*ip], false));
        let networks: Vec<_> = of_pods
            .chain(of_node)
            .filter(|(network, inside, _)| !inside.is_empty() && !is_ours(network))
            .collect();
        (!networks.is_empty()).then_some(Self {
            port: probe.port,
            networks,
        })
    }

    /// There is an endpoint with this address.
    fn want(&mut self, endpoint: IpAddr) {
        for (network, _, wanted) in &mut self.networks {
            *wanted |= network.contains(&endpoint);
        }
    }

    fn wanted(self, peer: &Peer) -> Option<PeerPlaces> {
        let mut places: BTreeMap<IpAddr, BTreeSet<IpNet>> = BTreeMap::new();
        for (network, inside, _) in self.networks.iter().filter(|(_, _, wanted)| *wanted) {
            for ip in inside {
                places.entry(*ip).or_default().insert(*network);
            }
        }
        let places: BTreeMap<IpAddr, Arc<[IpNet]>> = places
            .into_iter()
            .map(|(ip, networks)| (ip, networks.into_iter().collect()))
            .collect();
        (!places.is_empty()).then(|| PeerPlaces {
            key: *peer.key(),
            boot_id: Arc::clone(&peer.mesh_node.boot_id),
            port: self.port,
            places,
        })
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Where this node itself can be probed, for its MeshNode: its own addresses within its pod
/// networks. None before the cluster has a Node for it.
pub(crate) fn own_places(
    catalog: &Catalog,
    own_node: &NodeName,
    own: &Own,
    port: u16,
) -> Option<ProbePlaces> {
    let node = catalog.node(own_node)?;
    let is_pods = |ip: &IpAddr| node.pod_cidrs.iter().any(|network| network.contains(ip));
    let usable = |ip: &&IpAddr| is_pods(ip) && !own.never.contains(ip);
    Some(ProbePlaces {
        port,
        pod_addresses: own
            .interfaces
            .iter()
            .filter(usable)
            .take(MeshNode::MAX_PROBE_ADDRESSES)
            .copied()
            .collect(),
    })
}

/// Where this node answers: at the addresses that it tells, and at those that the cluster
/// knows it by, as far as it has them itself.
pub(crate) fn listening_places(
    catalog: &Catalog,
    own_node: &NodeName,
    own: &Own,
) -> BTreeSet<IpAddr> {
    let told = own_places(catalog, own_node, own, 0).into_iter();
    let told = told.flat_map(|places| places.pod_addresses);
    let known = catalog.node(own_node).into_iter();
    let known = known.flat_map(|node| node.addresses.iter().copied());
    told.chain(known)
        .filter(|ip| own.interfaces.contains(ip) && !ip.is_loopback() && !own.never.contains(ip))
        .collect()
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;

//! Which nodes are relays, how they are reached, and what a peer's relay is for this node.
//!
//! A relay is a peer. Which peers it may be is up to the configuration: when it names relay
//! nodes, these, at the addresses that it gives or, where it gives none, at those that they
//! publish; when it names none, every peer that says it is one. What a peer says is never
//! followed to an address that means another host to each node (loopback, link-local).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{MeshNode, NodeName, PublicKey};
use iroh::{EndpointAddr, RelayConfig, RelayUrl, TransportAddr};
use iroh_relay::RelayQuicConfig;
use tokio::sync::watch;

use crate::peer_address::endpoint_id;
use crate::peer_book::{Peer, Peers};
use crate::relay_address::RelayAddress;
use crate::relay_server::DISCOVERY_PORT;

/// A relay node of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayNode {
    /// Which node.
    pub node: NodeName,
    /// How it is reached; when empty, as it says itself. Of this node itself: what it says.
    pub addresses: Vec<RelayAddress>,
}

/// A relay that this node may use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Relay {
    node: NodeName,
    /// What it proves in address discovery: its key, or the one before while the agent that
    /// has that one hands over.
    keys: BTreeSet<PublicKey>,
    /// By what this node reaches it.
    addresses: BTreeSet<RelayAddress>,
    /// By what anybody may mean it.
    known_as: BTreeSet<RelayAddress>,
    discovery_port: u16,
}

/// All relays as of one moment. Never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relays {
    /// This node.
    node: Option<NodeName>,
    relays: Vec<Relay>,
    /// By what others mean this node's own relay.
    own: BTreeSet<RelayAddress>,
    /// By what this node reaches its own.
    own_local: Option<RelayAddress>,
}

impl Relays {
    /// Decides which peers are relays. `named` is from the configuration; `own_local` is
    /// where this node's own relay listens, if it has one that is open.
    pub(crate) fn new(
        peers: &Peers,
        named: &[RelayNode],
        own: &NodeName,
        own_local: Option<RelayAddress>,
    ) -> Self {
        let relay = |peer: &Arc<Peer>| relay(peer, named);
        Self {
            node: Some(own.clone()),
            relays: peers.iter().filter_map(relay).collect(),
            own: advertised(named, own).collect(),
            own_local,
        }
    }

    /// What the transport is told: by what to reach which relay.
    pub(crate) fn configs(&self) -> BTreeMap<RelayUrl, RelayConfig> {
        let others = self.relays.iter().flat_map(|relay| {
            let quic = RelayQuicConfig::new(relay.discovery_port);
            let urls = relay.addresses.iter().filter_map(RelayAddress::url);
            urls.map(move |url| RelayConfig::new(url, Some(quic.clone())))
        });
        // Asked over loopback, it would say that this node's address is a loopback one.
        let own = self.own_local.as_ref().and_then(RelayAddress::url);
        let own = own.map(|url| RelayConfig::new(url, None));
        others
            .chain(own)
            .map(|config| (config.url.clone(), config))
            .collect()
    }

    /// Who may tell this node its address, by where they do.
    pub(crate) fn keys(&self) -> BTreeMap<IpAddr, BTreeSet<PublicKey>> {
        let mut keys: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for relay in &self.relays {
            for address in &relay.addresses {
                let at = keys.entry(address.socket_addr().ip()).or_default();
                at.extend(relay.keys.iter().copied());
            }
        }
        keys
    }

    /// All ways to a peer: its addresses, and its relay if that is one that this node may
    /// use, by everything that this node reaches it by. None when its key is no key.
    pub(crate) fn address_of(&self, peer: &MeshNode) -> Option<EndpointAddr> {
        let relay_url = peer.relay_url.iter().filter_map(|url| url.parse().ok());
        let means: BTreeSet<_> = relay_url
            .filter_map(|url| RelayAddress::of_url(&url))
            .collect();
        let of_others = self
            .relays
            .iter()
            .filter(|relay| relay.node == peer.name || !relay.known_as.is_disjoint(&means))
            .flat_map(|relay| &relay.addresses);
        let own = self
            .own_local
            .iter()
            .filter(|_| !self.own.is_disjoint(&means));
        let relayed = of_others.chain(own).filter_map(RelayAddress::url);
        let direct = peer.addresses.iter().copied().map(TransportAddr::Ip);
        let ways = direct.chain(relayed.map(TransportAddr::Relay));
        Some(EndpointAddr::from_parts(
            endpoint_id(&peer.public_key)?,
            ways,
        ))
    }

    /// Whether this node may use a relay at this address.
    pub(crate) fn is_relay(&self, address: RelayAddress) -> bool {
        self.own_local == Some(address) || self.at(address).is_some()
    }

    /// By what this node reaches those that may stand in for the relay at this address, in
    /// turn. All nodes come to the same order, which goes round by the nodes' names. None for
    /// this node's own relay, without which it is no relay's client.
    pub(crate) fn stand_ins(&self, address: RelayAddress) -> Vec<RelayAddress> {
        let Some(away) = self.at(address) else {
            return Vec::new();
        };
        let others = self.relays.iter().filter(|relay| relay.node != away.node);
        let others = others.filter_map(|relay| Some((&relay.node, *relay.addresses.first()?)));
        let own = self.node.as_ref().zip(self.own_local);
        let (mut before, mut after): (Vec<_>, Vec<_>) =
            others.chain(own).partition(|(node, _)| **node < away.node);
        before.sort_unstable();
        after.sort_unstable();
        let in_turn = after.into_iter().chain(before);
        in_turn.map(|(_, address)| address).collect()
    }

    /// For whose relay, not this node's, somebody takes this one who asks for `address`.
    pub(crate) fn stands_in_for(&self, address: RelayAddress) -> Option<&NodeName> {
        if self.own.contains(&address) || self.own_local == Some(address) {
            return None;
        }
        let mut known = self.relays.iter();
        let known = known
            .find(|relay| relay.addresses.contains(&address) || relay.known_as.contains(&address));
        known.map(|relay| &relay.node)
    }

    fn at(&self, address: RelayAddress) -> Option<&Relay> {
        let mut relays = self.relays.iter();
        relays.find(|relay| relay.addresses.contains(&address))
    }

    /// By what others reach the relay that this node reaches by `url`.
    pub(crate) fn public_url(&self, url: &RelayUrl) -> Option<RelayUrl> {
        let address = RelayAddress::of_url(url)?;
        if Some(address) == self.own_local {
            return self.own.first()?.url();
        }
        let known = self.relays.iter().any(|of| of.addresses.contains(&address));
        known.then(|| url.clone())
    }

    /// By what others reach this node's own relay.
    pub(crate) fn own_urls(&self) -> impl Iterator<Item = RelayUrl> {
        self.own.iter().filter_map(RelayAddress::url)
    }
}

/// What the configuration says of how `node` is reached as a relay.
fn advertised<'a>(
    named: &'a [RelayNode],
    node: &'a NodeName,
) -> impl Iterator<Item = RelayAddress> + 'a {
    let entries = named.iter().filter(move |entry| entry.node == *node);
    entries.flat_map(|entry| entry.addresses.iter().copied())
}

fn relay(peer: &Arc<Peer>, named: &[RelayNode]) -> Option<Relay> {
    let is_named = named.iter().any(|entry| entry.node == *peer.name());
    if !named.is_empty() && !is_named {
        return None;
    }
    let says = peer.mesh_node.relay_server.as_deref();
    let advertised: BTreeSet<_> = advertised(named, peer.name()).collect();
    let published: BTreeSet<_> = says
        .into_iter()
        .flat_map(|relay| &relay.urls)
        .filter_map(|url| RelayAddress::of_url(&url.parse().ok()?))
        .filter(|address| !address.is_local())
        .collect();
    let known_as: BTreeSet<_> = advertised.union(&published).copied().collect();
    let addresses = if advertised.is_empty() {
        published
    } else {
        advertised
    };
    (!addresses.is_empty()).then(|| Relay {
        node: peer.name().clone(),
        keys: peer.keys().collect(),
        addresses,
        known_as,
        discovery_port: says.map_or(DISCOVERY_PORT, |relay| relay.address_discovery_port),
    })
}

/// The relays of the moment, for those who connect. Copies share them.
#[derive(Clone, Debug)]
pub(crate) struct RelayBook(Arc<watch::Sender<Arc<Relays>>>);

impl RelayBook {
    /// Without any.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }

    /// The relays as of now.
    pub(crate) fn get(&self) -> Arc<Relays> {
        Arc::clone(&self.0.borrow())
    }

    /// The relays as they change.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Relays>> {
        self.0.subscribe()
    }

    pub(crate) fn set(&self, relays: Relays) {
        self.0.send_if_modified(|known| {
            let changed = **known != relays;
            if changed {
                *known = Arc::new(relays);
            }
            changed
        });
    }
}

#[cfg(test)]
#[path = "relay_book_tests.rs"]
mod tests;

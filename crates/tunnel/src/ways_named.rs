//! Has a peer moved? Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use edgemesh_catalog::MeshNode;

/// Most ways that are remembered of a peer. Beyond it all is forgotten, and what comes next
/// counts as new.
const MOST: usize = 256;

/// The addresses that a peer's MeshNode has ever named. A peer whose uplink is away names
/// fewer, and the same ones again when it is back: that is no move. Nor is another relay: a
/// connection may have a path of its own.
#[derive(Debug, Default)]
pub(crate) struct WaysNamed(BTreeSet<IpAddr>);

impl WaysNamed {
    /// Remembers what is named; tells whether something new is among it. Ports do not count:
    /// many NATs give another one each time.
    pub(crate) fn add(&mut self, mesh_node: &MeshNode) -> bool {
        if self.0.len() > MOST {
            self.0.clear();
        }
        let mut is_new = false;
        for address in &mesh_node.addresses {
            is_new |= self.0.insert(address.ip());
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{NodeName, PublicKey};

    use super::*;

    fn mesh_node(addresses: &[&str], relay_url: Option<&str>) -> MeshNode {
        MeshNode {
            name: NodeName::new("edge-1"),
            uid: None,
            public_key: PublicKey::from_bytes([1; 32]),
            name_signature: None,
            addresses: addresses.iter().map(|at| at.parse().unwrap()).collect(),
            relay_url: relay_url.map(Into::into),
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "1".into(),
            boot_id: "b".into(),
            previous_key: None,
        }
    }

    #[test]
    fn a_peer_that_loses_its_ways_and_has_them_again_has_not_moved() {
        let mut named = WaysNamed::default();
        let whole = mesh_node(&["192.168.1.11:20006", "203.0.113.5:1"], Some("http://r/"));
        assert!(named.add(&whole));
        assert!(!named.add(&mesh_node(&["192.168.1.11:20006"], None)));
        assert!(!named.add(&whole));
        assert!(
            !named.add(&mesh_node(&["203.0.113.5:40000"], None)),
            "a port"
        );
    }

    #[test]
    fn a_new_address_is_a_move_and_a_new_relay_is_none() {
        let mut named = WaysNamed::default();
        named.add(&mesh_node(&["192.168.1.11:20006"], Some("http://r/")));
        assert!(named.add(&mesh_node(&["192.168.1.12:20006"], Some("http://r/"))));
        assert!(!named.add(&mesh_node(&["192.168.1.12:20006"], Some("http://other/"))));
    }
}

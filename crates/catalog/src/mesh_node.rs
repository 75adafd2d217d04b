//! A `MeshNode`: what a node's agent says of itself, so that other agents find and know it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{KeySignature, NodeName, PublicKey};

/// The `MeshNode` of one node (`edgemesh.kubeedge.io/v1alpha1`), as far as its peers need it.
///
/// The time of its last renewal is not kept: thousands of nodes that say every few minutes
/// that nothing changed are to wake nobody. That the object is there says nothing about
/// whether it is to be believed: whoever connects decides that, by the Node and the keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshNode {
    /// Its name, the same as that of its Node.
    pub name: NodeName,
    /// `metadata.uid`; none with manifests, or before the API server has given one. It tells
    /// an object that was deleted and made again from one that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Arc<str>>,
    /// The key that the node's agent proves to have.
    pub public_key: PublicKey,
    /// That key's word for the node's name, without which nobody believes it: who copies a
    /// key from another MeshNode cannot sign with it. Not verified here. Boxed, for its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_signature: Option<Box<KeySignature>>,
    /// UDP addresses of its tunnel, best first. At most [`MeshNode::MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// URL of the relay at which it can be reached now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_url: Option<Arc<str>>,
    /// Present when this node is a relay itself. Boxed, for few are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_server: Option<Box<RelayServer>>,
    /// The networks of its pods. At most [`MeshNode::MAX_POD_CIDRS`].
    pub pod_cidrs: Vec<IpNet>,
    /// Where its agent can be asked to prove its key outside the tunnel; none when it does
    /// not answer. Boxed, for its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Box<ProbePlaces>>,
    /// Version of its agent; empty when not said.
    pub version: Arc<str>,
    /// Changes with each start of the agent: peers drop their connections to the process
    /// before. Empty when not said.
    pub boot_id: Arc<str>,
    /// The key before this one, while peers may still know that one only. Boxed, for it is
    /// rare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key: Option<Box<PreviousKey>>,
}

/// How a relay node is reached by those who need a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayServer {
    /// URLs of the relay, best first. At most [`MeshNode::MAX_RELAY_URLS`].
    pub urls: Vec<Arc<str>>,
    /// UDP port at which it tells others their address as seen from outside (QUIC address
    /// discovery).
    pub address_discovery_port: u16,
}

/// Where a node's agent answers probes, which prove that it is reached without the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePlaces {
    /// UDP port at which it answers, at these addresses and at those of its Node.
    pub port: u16,
    /// The node's own addresses within its pod networks, such as that of the pods' bridge. At
    /// most [`MeshNode::MAX_PROBE_ADDRESSES`].
    pub pod_addresses: Vec<IpAddr>,
}

/// The key that a node had before, and that key's word for the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousKey {
    /// The old key.
    pub public_key: PublicKey,
    /// The old key's signature over the new one. Not verified here.
    pub signature: KeySignature,
}

impl MeshNode {
    /// Most addresses that are kept of one node.
    pub const MAX_ADDRESSES: usize = 16;
    /// Most URLs that are kept of one relay.
    pub const MAX_RELAY_URLS: usize = 4;
    /// Most pod networks that are kept of one node.
    pub const MAX_POD_CIDRS: usize = 16;
    /// Most addresses to be probed that are kept of one node.
    pub const MAX_PROBE_ADDRESSES: usize = 8;
    /// Longest URL, in bytes.
    pub const MAX_URL_LENGTH: usize = 256;
    /// Longest version, in bytes.
    pub const MAX_VERSION_LENGTH: usize = 64;
    /// Longest boot id, in bytes.
    pub const MAX_BOOT_ID_LENGTH: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_no_relay_is_small() {
        // Thousands of them are kept on nodes with little memory.
        assert!(size_of::<MeshNode>() <= 192, "{}", size_of::<MeshNode>());
    }

    #[test]
    fn what_is_absent_is_not_written() {
        let node = MeshNode {
            name: NodeName::new("edge-1"),
            uid: None,
            public_key: PublicKey::from_bytes([7; 32]),
            name_signature: None,
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "1.0.0".into(),
            boot_id: "b".into(),
            previous_key: None,
        };
        let json = serde_json::to_string(&node).unwrap();
        assert!(!json.contains("null"), "{json}");
        assert_eq!(serde_json::from_str::<MeshNode>(&json).unwrap(), node);
    }
}

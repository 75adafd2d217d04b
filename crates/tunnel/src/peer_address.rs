//! Where a peer is, in the transport's words.

use edgemesh_catalog::{MeshNode, PublicKey};
use iroh::{EndpointAddr, EndpointId, RelayUrl, TransportAddr};

/// The transport's name for a key; none when the bytes are no key of the curve.
pub(crate) fn endpoint_id(key: &PublicKey) -> Option<EndpointId> {
    EndpointId::from_bytes(key.as_bytes()).ok()
}

/// The key behind the transport's name.
pub(crate) fn public_key(id: &EndpointId) -> PublicKey {
    PublicKey::from_bytes(*id.as_bytes())
}

/// All ways to a peer that its MeshNode names; none when its key is no key.
pub(crate) fn peer_address(mesh_node: &MeshNode) -> Option<EndpointAddr> {
    let direct = mesh_node.addresses.iter().copied().map(TransportAddr::Ip);
    let relayed = mesh_node
        .relay_url
        .iter()
        .filter_map(|url| url.parse::<RelayUrl>().ok())
        .map(TransportAddr::Relay);
    let id = endpoint_id(&mesh_node.public_key)?;
    Some(EndpointAddr::from_parts(id, direct.chain(relayed)))
}

//! Who a peer is, in the transport's words.

use edgemesh_catalog::PublicKey;
use iroh::EndpointId;

/// The transport's name for a key; none when the bytes are no key of the curve.
pub(crate) fn endpoint_id(key: &PublicKey) -> Option<EndpointId> {
    EndpointId::from_bytes(key.as_bytes()).ok()
}

/// The key behind the transport's name.
pub(crate) fn public_key(id: &EndpointId) -> PublicKey {
    PublicKey::from_bytes(*id.as_bytes())
}

//! The names of the chains kube-proxy makes per service port and per endpoint.

use sha2::{Digest, Sha256};

use crate::service::Protocol;

/// The chain of a service port. Source: kube-proxy `servicePortPolicyClusterChain`.
#[must_use]
pub fn service_chain(port_name: &str, protocol: Protocol) -> String {
    format!(
        "KUBE-SVC-{}",
        hash(&format!("{port_name}{}", protocol.lower()))
    )
}

/// The chain of one endpoint (`address:port`) of a service port. Source: kube-proxy
/// `servicePortEndpointChainName`.
#[must_use]
pub fn endpoint_chain(port_name: &str, protocol: Protocol, endpoint: &str) -> String {
    let all = format!("{port_name}{}{endpoint}", protocol.lower());
    format!("KUBE-SEP-{}", hash(&all))
}

/// The first 16 letters of the SHA-256 in base 32 (RFC 4648): 80 bits, 5 to a letter.
fn hash(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    let bits = digest[..10]
        .iter()
        .fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    (0..16)
        .rev()
        .map(|letter| char::from(ALPHABET[(bits >> (5 * letter)) as usize & 31]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_ones_kube_proxy_gives() {
        let port = "default/kubernetes:https";
        assert_eq!(
            service_chain(port, Protocol::Tcp),
            "KUBE-SVC-NPX46M4PTMTKRN6Y"
        );
        assert_eq!(
            endpoint_chain(port, Protocol::Tcp, "198.51.100.10:6443"),
            "KUBE-SEP-EUBHQ3EY5KKY23SY"
        );
        assert_eq!(
            endpoint_chain("default/udp-echo:udp", Protocol::Udp, "10.244.1.11:7007"),
            "KUBE-SEP-HMKY2TBLVLHGX45O"
        );
    }
}

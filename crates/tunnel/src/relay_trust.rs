//! Which relays this node believes, and by which keys: the side of the client.
//!
//! A relay tells others their address by QUIC, which begins with TLS. There is no authority
//! that could vouch for it, and none is needed: the relay shows the key of its node (RFC
//! 7250, a raw public key), and this node knows from the peers which keys those may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use edgemesh_catalog::PublicKey;
use iroh_relay::tls::CaTlsConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::raw_key_verifier::{Believes, RawKeyVerifier, subject_public_key};

/// The keys that a relay at an address may show. Several relays may share an address, behind
/// a NAT that tells them apart by their ports.
type Keys = BTreeMap<IpAddr, BTreeSet<PublicKey>>;

/// Whom to believe. Copies share their content; at first nobody is believed.
#[derive(Clone, Debug, Default)]
pub(crate) struct RelayTrust {
    keys: Arc<RwLock<Keys>>,
}

impl RelayTrust {
    /// From now on these, and no others.
    pub(crate) fn set(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// How the transport verifies relays: every connection with one is judged by whom is
    /// believed when it is made.
    pub(crate) fn tls(&self) -> CaTlsConfig {
        let trust = self.clone();
        CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider| {
            Ok(Arc::new(RawKeyVerifier::new(trust.clone(), provider)))
        }))
    }
}

impl Believes for RelayTrust {
    fn believes(&self, name: Option<&ServerName<'_>>, shown: &[u8]) -> bool {
        let address: IpAddr = match name {
            Some(ServerName::IpAddress(address)) => (*address).into(),
            // Relays are known by address: a name would have to be asked for.
            _ => return false,
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&address.to_canonical()).is_some_and(|keys| {
            keys.iter()
                .any(|key| subject_public_key(key).as_ref() == shown)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName<'static> {
        ServerName::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn relay_is_believed_with_its_own_key_at_its_own_address_only() {
        let [ours, other] = [[1; 32], [2; 32]].map(PublicKey::from_bytes);
        let trust = RelayTrust::default();
        let believes =
            |at: &str, key: &PublicKey| trust.believes(Some(&name(at)), &subject_public_key(key));
        assert!(!believes("192.0.2.1", &ours));

        let at = "192.0.2.1".parse().unwrap();
        trust.set(Keys::from([(at, BTreeSet::from([ours]))]));
        assert!(believes("192.0.2.1", &ours));
        assert!(!believes("192.0.2.1", &other));
        assert!(!believes("192.0.2.2", &ours));
        assert!(!believes("relay.example", &ours));

        trust.set(Keys::new());
        assert!(!believes("192.0.2.1", &ours));
    }
}

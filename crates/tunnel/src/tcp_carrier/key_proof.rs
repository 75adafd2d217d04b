//! How the two ends of a lane prove their nodes' keys to each other: TLS 1.3 with raw public
//! keys on both sides (RFC 7250), the same keys as on the connection that the lane belongs to.

use std::sync::Arc;

use edgemesh_catalog::PublicKey;
use edgemesh_wire::LANE_ALPN;
use iroh_relay::tls::default_provider;
use tokio::sync::watch;
use tokio_rustls::rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{CipherSuite, ClientConfig, Error, ServerConfig};

use crate::identity::NodeKey;
use crate::peer_book::Peers;
use crate::raw_key_verifier::{Believes, RawKeyVerifier, subject_public_key};
use crate::relay_certificate::certified;

/// TLS towards a listener that has to prove `expected`.
pub(super) fn dialler_tls(key: &NodeKey, expected: PublicKey) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = RawKeyVerifier::new(Whom::This(expected), Arc::clone(&provider));
    let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(key)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![LANE_ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

/// TLS towards whoever comes, of whom only those get through that are peers at that moment.
pub(super) fn listener_tls(
    key: &NodeKey,
    peers: watch::Receiver<Arc<Peers>>,
) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = RawKeyVerifier::new(Whom::AnyPeer(peers), Arc::clone(&provider));
    let resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(key)));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![LANE_ALPN.to_vec()];
    // Tickets would come between the records of the lane, and a lane is never resumed.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Ok(config)
}

/// The key in what a side has shown.
pub(super) fn shown_key(shown: &[u8]) -> Option<PublicKey> {
    let key = PublicKey::from_bytes(*shown.last_chunk()?);
    (subject_public_key(&key).as_ref() == shown).then_some(key)
}

/// The ciphers, the cheapest for this host first: AES where the processor has it. 128 bits are
/// those of the curve that the keys are of; 256 would cost a third more.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = (*default_provider()).clone();
    let first = if has_aes() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
    } else {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    };
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// Who gets through.
#[derive(Debug)]
enum Whom {
    /// The peer that was dialled.
    This(PublicKey),
    /// Who is believed now.
    AnyPeer(watch::Receiver<Arc<Peers>>),
}

impl Believes for Whom {
    fn believes(&self, _name: Option<&ServerName<'_>>, shown: &[u8]) -> bool {
        shown_key(shown).is_some_and(|key| match self {
            Self::This(expected) => key == *expected,
            Self::AnyPeer(peers) => peers.borrow().with_key(&key).is_some(),
        })
    }
}

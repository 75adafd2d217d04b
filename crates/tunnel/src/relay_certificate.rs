//! How this node's relay proves that it is this node's: the side of the server.
//!
//! It shows the node's own key in TLS, as a raw public key (RFC 7250). So there is no
//! certificate that could expire, no authority, and no secret that several nodes share.

use std::sync::Arc;

use iroh::SecretKey;
use iroh_relay::quic::ALPN_QUIC_ADDR_DISC;
use iroh_relay::tls::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use tokio_rustls::rustls::server::AlwaysResolvesServerRawPublicKeys;
use tokio_rustls::rustls::sign::{CertifiedKey, Signer, SigningKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{Error, ServerConfig, SignatureAlgorithm, SignatureScheme};

use crate::identity::NodeKey;
use crate::raw_key_verifier::subject_public_key;

/// TLS for address discovery: version 1.3, and the key of this node.
pub(crate) fn server_tls(key: &NodeKey) -> Result<ServerConfig, Error> {
    let resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(key)));
    let mut config = ServerConfig::builder_with_provider(default_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_QUIC_ADDR_DISC.to_vec()];
    Ok(config)
}

/// The node's key as TLS shows it and signs with it.
pub(crate) fn certified(key: &NodeKey) -> Arc<CertifiedKey> {
    let public = subject_public_key(&key.public());
    let shown = CertificateDer::from(public.to_vec());
    let signer = Arc::new(NodeSigner {
        secret: key.secret().clone(),
        public,
    });
    Arc::new(CertifiedKey::new(vec![shown], signer))
}

/// Signs with the key where it is: the private half is copied into no other form.
#[derive(Clone, Debug)]
struct NodeSigner {
    secret: SecretKey,
    public: SubjectPublicKeyInfoDer<'static>,
}

impl SigningKey for NodeSigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.clone())
    }
}

impl Signer for NodeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.secret.sign(message).to_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

//! TLS 1.3 with raw public keys (RFC 7250): that the other end has the private key is proved
//! here; whose key may be shown is asked.

use std::fmt::Debug;
use std::sync::Arc;

use edgemesh_catalog::PublicKey;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, alg_id,
};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::public_key_to_spki;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};

/// Whose keys are believed.
pub(crate) trait Believes: Debug + Send + Sync {
    /// Whether who shows this key ([`subject_public_key`]) is let through. `name` is whom this
    /// node has dialled, and none for somebody who came.
    fn believes(&self, name: Option<&ServerName<'_>>, shown: &[u8]) -> bool;
}

/// Verifies the other end of a connection, whichever end that is.
#[derive(Debug)]
pub(crate) struct RawKeyVerifier<B> {
    whom: B,
    provider: Arc<CryptoProvider>,
}

impl<B: Believes> RawKeyVerifier<B> {
    pub(crate) fn new(whom: B, provider: Arc<CryptoProvider>) -> Self {
        Self { whom, provider }
    }

    fn believe(&self, name: Option<&ServerName<'_>>, shown: &[u8]) -> Result<(), Error> {
        if self.whom.believes(name, shown) {
            return Ok(());
        }
        let unknown = CertificateError::ApplicationVerificationFailure;
        Err(Error::InvalidCertificate(unknown))
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
    }
}

/// A key in the form in which TLS shows it.
pub(crate) fn subject_public_key(key: &PublicKey) -> SubjectPublicKeyInfoDer<'static> {
    public_key_to_spki(&alg_id::ED25519, key.as_bytes())
}

/// What rustls asks of both ends' verifiers in the same words.
macro_rules! by_raw_ed25519_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _shown: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            // It is never offered, so nothing can have been signed for it.
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.verify(message, shown, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl<B: Believes> ServerCertVerifier for RawKeyVerifier<B> {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.believe(Some(name), shown)?;
        Ok(ServerCertVerified::assertion())
    }

    by_raw_ed25519_keys!();
}

impl<B: Believes> ClientCertVerifier for RawKeyVerifier<B> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.believe(None, shown)?;
        Ok(ClientCertVerified::assertion())
    }

    by_raw_ed25519_keys!();
}

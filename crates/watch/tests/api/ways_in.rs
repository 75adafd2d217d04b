//! The ways to an API server.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgemesh_watch::{ApiWay, MetaServerSecurity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::fake_api_server::{FakeApiServer, NODES, SERVICES, SLICES};
use crate::stage::{Watching, node, quick, service, slice, small_cluster};

fn write_kubeconfig(path: &Path, server: &str) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    });
    fs::write(path, kubeconfig.to_string()).unwrap();
}

#[tokio::test]
async fn kubeconfig_that_appears_later_is_taken_up() {
    let server = small_cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let mut watching = Watching::by(ApiWay::Kubeconfig(path.clone()), None, quick());
    watching.until_errors(1).await;

    write_kubeconfig(&path, &server.url());
    watching.until_services(&["web"]).await;
    assert_eq!(server.authorization().as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn master_replaces_the_address_of_the_kubeconfig_and_keeps_its_identity() {
    let server = small_cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    write_kubeconfig(&path, "https://192.0.2.1:6443");
    let url = server.url().replace("http://", "");
    let kubeconfig = Some(path);
    let mut watching = Watching::by(ApiWay::Master { url, kubeconfig }, None, quick());
    watching.until_services(&["web"]).await;
    assert_eq!(server.authorization().as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn plain_meta_server_needs_no_certificates() {
    let server = small_cluster().await;
    let way = ApiWay::MetaServer {
        url: server.url(),
        security: None,
    };
    let mut watching = Watching::by(way, None, quick());
    watching.until_services(&["web"]).await;
}

/// Certificates of a metaServer that requires authorization.
struct Certificates {
    dir: TempDir,
    server: Arc<ServerConfig>,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &authority).unwrap(), key)
        };
        let (server_cert, server_key) = issue("127.0.0.1");
        let (client_cert, client_key) = issue("edgemesh-agent");
        fs::write(dir.path().join("ca.crt"), authority.pem()).unwrap();
        fs::write(dir.path().join("agent.crt"), client_cert.pem()).unwrap();
        fs::write(dir.path().join("agent.key"), client_key.serialize_pem()).unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
        let server = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![server_cert.der().clone()],
                PrivateKeyDer::from_pem_slice(server_key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        Self {
            dir,
            server: server.into(),
        }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.path().join(name))
    }

    fn security(&self) -> MetaServerSecurity {
        MetaServerSecurity {
            insecure_skip_tls_verify: false,
            ca_file: self.file("ca.crt"),
            cert_file: self.file("agent.crt"),
            key_file: self.file("agent.key"),
        }
    }
}

async fn secure_cluster(certificates: &Certificates) -> FakeApiServer {
    let server = FakeApiServer::start_with_tls(certificates.server.clone()).await;
    server.put(SERVICES, service("web"));
    server.put(SLICES, slice("web-1", "web", &["10.244.1.2"]));
    server.put(NODES, node("edge-1"));
    server
}

fn meta_server(server: &FakeApiServer, security: MetaServerSecurity) -> ApiWay {
    ApiWay::MetaServer {
        url: server.url(),
        security: Some(security),
    }
}

#[tokio::test]
async fn meta_server_that_requires_authorization_is_shown_a_certificate() {
    let certificates = Certificates::new();
    let server = secure_cluster(&certificates).await;
    let way = meta_server(&server, certificates.security());
    let mut watching = Watching::by(way, None, quick());
    watching.until_services(&["web"]).await;
}

#[tokio::test]
async fn meta_server_of_another_authority_is_not_trusted_unless_told_to() {
    let certificates = Certificates::new();
    let others = Certificates::new();
    let server = secure_cluster(&certificates).await;
    let wrong_authority = MetaServerSecurity {
        ca_file: others.file("ca.crt"),
        ..certificates.security()
    };
    let watching = Watching::by(meta_server(&server, wrong_authority.clone()), None, quick());
    watching.until_errors(2).await;
    assert!(server.requests().is_empty());

    let insecure = MetaServerSecurity {
        insecure_skip_tls_verify: true,
        ..wrong_authority
    };
    let mut watching = Watching::by(meta_server(&server, insecure), None, quick());
    watching.until_services(&["web"]).await;
}

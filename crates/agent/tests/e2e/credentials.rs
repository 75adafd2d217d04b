//! Keys, certificates and the kubeconfig of one throw-away cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The files that let the parts of a cluster trust each other, in one folder.
#[derive(Debug)]
pub(crate) struct Credentials {
    folder: PathBuf,
}

/// The one user there is besides service accounts. Its group may do everything.
const TOKEN: &str = "e2e-token-of-nobody-else";

impl Credentials {
    /// Makes an authority, a server certificate for `address`, a key for service
    /// account tokens and a token for the only user, all in `folder`.
    pub(crate) fn create(folder: &Path, address: &str) -> Result<Self> {
        let credentials = Self {
            folder: folder.to_owned(),
        };
        let (authority, issuer) = authority()?;
        let server_key = KeyPair::generate()?;
        let server =
            CertificateParams::new(vec![address.to_owned()])?.signed_by(&server_key, &issuer)?;
        let accounts = KeyPair::generate()?;
        credentials.write("authority.pem", &authority)?;
        credentials.write("server.pem", &server.pem())?;
        credentials.write("server-key.pem", &server_key.serialize_pem())?;
        credentials.write("accounts-key.pem", &accounts.serialize_pem())?;
        credentials.write("accounts.pem", &accounts.public_key_pem())?;
        credentials.write("tokens.csv", &format!("{TOKEN},e2e,e2e,system:masters\n"))?;
        Ok(credentials)
    }

    /// The path of one of the files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the kubeconfig `name` for the API server at `https://address:port`.
    pub(crate) fn kubeconfig(&self, name: &str, address: &str, port: u16) -> Result<PathBuf> {
        self.kubeconfig_with_token(name, address, port, TOKEN)
    }

    /// The same for who has this token.
    pub(crate) fn kubeconfig_with_token(
        &self,
        name: &str,
        address: &str,
        port: u16,
        token: &str,
    ) -> Result<PathBuf> {
        let authority = self.path("authority.pem");
        let authority = authority.display();
        let text = format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: e2e\n\
             \x20 cluster:\n\
             \x20   server: https://{address}:{port}\n\
             \x20   certificate-authority: {authority}\n\
             users:\n\
             - name: e2e\n\
             \x20 user:\n\
             \x20   token: {token}\n\
             contexts:\n\
             - name: e2e\n\
             \x20 context:\n\
             \x20   cluster: e2e\n\
             \x20   user: e2e\n\
             current-context: e2e\n"
        );
        self.write(name, &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A certificate authority: its certificate as PEM, and what signs with it.
fn authority() -> Result<(String, Issuer<'static, KeyPair>)> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
        .distinguished_name
        .push(DnType::CommonName, "edgemesh e2e");
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), Issuer::new(parameters, key)))
}

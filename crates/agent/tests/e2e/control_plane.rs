//! etcd and kube-apiserver in a namespace of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{Background, Lab, Node, Place, await_ok};

use crate::api::KubeApi;
use crate::credentials::Credentials;
use crate::programs::Programs;

/// How long the API server may take to be ready.
const STARTED: Duration = Duration::from_secs(90);
const PORT: u16 = 6443;
/// Where the second API server listens, which nodes are not told of.
const SIDE_PORT: u16 = 7443;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// A control plane: all state is in etcd, so that API servers may come and go.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    place: Node,
    program: PathBuf,
    service_ranges: &'static str,
    logs: PathBuf,
    credentials: Credentials,
    api_server: Option<Background>,
    _etcd: Background,
}

impl ControlPlane {
    /// Starts etcd and an API server on a node of their own, and waits until it is ready.
    pub(crate) fn start(lab: &Lab, programs: &Programs, logs: &Path) -> Result<Self> {
        Self::start_on(lab.node("control-plane").create()?, lab, programs, logs)
    }

    /// The same on this node.
    pub(crate) fn start_on(
        place: Node,
        lab: &Lab,
        programs: &Programs,
        logs: &Path,
    ) -> Result<Self> {
        let address = place.ipv4().to_string();
        let etcd = place
            .program(&programs.etcd)
            .arg("--data-dir")
            .arg(lab.folder().join("etcd"))
            .arg(format!("--listen-client-urls={ETCD}"))
            .arg(format!("--advertise-client-urls={ETCD}"))
            .arg(format!("--listen-peer-urls={ETCD_PEERS}"))
            .start(logs.join("etcd.log"))?;
        let mut control_plane = Self {
            credentials: Credentials::create(&lab.new_folder("credentials")?, &address)?,
            program: programs.api_server.clone(),
            service_ranges: if programs.are_dual_stack() {
                "10.96.0.0/16,fd00:10:96::/112"
            } else {
                "10.96.0.0/16"
            },
            logs: logs.to_owned(),
            place,
            api_server: None,
            _etcd: etcd,
        };
        control_plane.start_api_server()?;
        Ok(control_plane)
    }

    /// Starts the API server that nodes know, and waits until it is ready.
    pub(crate) fn start_api_server(&mut self) -> Result<()> {
        self.api_server = Some(self.serve(PORT, &[])?);
        Ok(())
    }

    /// Kills the API server that nodes know.
    pub(crate) fn kill_api_server(&mut self) -> Result<()> {
        self.api_server
            .take()
            .context("no API server is running")?
            .kill()
    }

    /// Lets `change` alter objects through a second API server: nodes learn nothing of it
    /// as long as theirs is down.
    pub(crate) fn behind_the_scenes(
        &self,
        change: impl FnOnce(&KubeApi) -> Result<()>,
    ) -> Result<()> {
        // It must not announce itself as an endpoint of default/kubernetes.
        let _side = self.serve(SIDE_PORT, &["--endpoint-reconciler-type=none"])?;
        change(&self.api_at(SIDE_PORT)?)
    }

    /// A client of the API server that nodes know.
    pub(crate) fn api(&self) -> Result<KubeApi> {
        self.api_at(PORT)
    }

    /// The kubeconfig for nodes.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig_at(PORT)
    }

    /// A kubeconfig for `user`, who has this token.
    pub(crate) fn kubeconfig_with_token(&self, user: &str, token: &str) -> Result<PathBuf> {
        let address = self.place.ipv4().to_string();
        let name = format!("kubeconfig-of-{user}");
        self.credentials
            .kubeconfig_with_token(&name, &address, PORT, token)
    }

    fn api_at(&self, port: u16) -> Result<KubeApi> {
        let kubeconfig = self.kubeconfig_at(port)?;
        Ok(KubeApi::new(self.place.namespace(), kubeconfig))
    }

    fn kubeconfig_at(&self, port: u16) -> Result<PathBuf> {
        let address = self.place.ipv4().to_string();
        self.credentials
            .kubeconfig(&format!("kubeconfig-{port}"), &address, port)
    }

    fn serve(&self, port: u16, more: &[&str]) -> Result<Background> {
        let address = self.place.ipv4();
        let file = |name| self.credentials.path(name).display().to_string();
        let server = self
            .place
            .program(&self.program)
            .arg(format!("--etcd-servers={ETCD}"))
            .arg(format!("--bind-address={address}"))
            .arg(format!("--advertise-address={address}"))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--tls-cert-file={}", file("server.pem")))
            .arg(format!("--tls-private-key-file={}", file("server-key.pem")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .args(["--authorization-mode=RBAC", "--anonymous-auth=false"])
            .arg(format!(
                "--service-cluster-ip-range={}",
                self.service_ranges
            ))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-key-file={}",
                file("accounts.pem")
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                file("accounts-key.pem")
            ))
            .args(more)
            .start(self.logs.join(format!("kube-apiserver-{port}.log")))?;
        let api = self.api_at(port)?;
        await_ok(STARTED, "the API server is ready", || api.ready())?;
        Ok(server)
    }
}

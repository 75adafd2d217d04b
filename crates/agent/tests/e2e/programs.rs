//! The programs of a cluster, as `e2e/run` hands them over.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::Program;

/// The real programs that the scenarios run.
#[derive(Debug)]
pub(crate) struct Programs {
    /// etcd.
    pub(crate) etcd: PathBuf,
    /// kube-apiserver.
    pub(crate) api_server: PathBuf,
    /// kube-proxy.
    pub(crate) kube_proxy: PathBuf,
    /// The minor version of Kubernetes: 20 for 1.20.
    pub(crate) minor: u32,
}

impl Programs {
    /// Takes them from the environment: `ETCD` is a file, `K8S_BIN` a folder.
    pub(crate) fn find() -> Result<Self> {
        let kubernetes = from_environment("K8S_BIN")?;
        let kube_proxy = kubernetes.join("kube-proxy");
        let printed = Program::new(&kube_proxy).arg("--version").run()?;
        Ok(Self {
            etcd: from_environment("ETCD")?,
            api_server: kubernetes.join("kube-apiserver"),
            minor: minor(&printed)
                .with_context(|| format!("{} said {printed:?}", kube_proxy.display()))?,
            kube_proxy,
        })
    }

    /// Whether Services of two families are beyond their trial (since 1.23).
    pub(crate) fn are_dual_stack(&self) -> bool {
        self.minor >= 23
    }

    /// Whether kube-proxy's nftables mode needs no feature gate (since 1.31).
    pub(crate) fn have_nftables_mode(&self) -> bool {
        self.minor >= 31
    }
}

fn from_environment(name: &str) -> Result<PathBuf> {
    let value = env::var_os(name)
        .with_context(|| format!("{name} is not set: start this test with e2e/run"))?;
    let path = PathBuf::from(value);
    ensure!(path.exists(), "{name}: there is no {}", path.display());
    Ok(path)
}

/// The 20 of "Kubernetes v1.20.2".
fn minor(printed: &str) -> Option<u32> {
    printed
        .trim()
        .strip_prefix("Kubernetes v1.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

//! The real kube-proxy.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use edgemesh_lab::{Family, Flavour, Node, Place, Program};

use crate::flavoured_path::flavoured_path;
use crate::programs::Programs;

/// Where kube-proxy puts its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Chains in the tables of iptables.
    Iptables,
    /// A table of its own (since 1.31 without a feature gate).
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// How kube-proxy is started.
#[derive(Debug)]
pub(crate) struct KubeProxySetup {
    program: PathBuf,
    path: OsString,
    kubeconfig: PathBuf,
    endpoint_slices: bool,
    dual_stack: bool,
}

impl KubeProxySetup {
    /// A kube-proxy that finds iptables of one flavour only.
    pub(crate) fn new(
        programs: &Programs,
        folder: &Path,
        flavour: Flavour,
        kubeconfig: PathBuf,
    ) -> Result<Self> {
        Ok(Self {
            program: programs.kube_proxy.clone(),
            path: flavoured_path(&folder.join("path"), flavour)?,
            kubeconfig,
            // Before discovery.k8s.io/v1 it reads v1beta1, which nobody writes here.
            endpoint_slices: programs.minor >= 21,
            dual_stack: programs.are_dual_stack(),
        })
    }

    /// The families that it has rules for.
    pub(crate) fn families(&self) -> &'static [Family] {
        if self.dual_stack {
            &Family::ALL
        } else {
            &[Family::V4]
        }
    }

    /// kube-proxy on `node`.
    pub(crate) fn run(&self, node: &Node, mode: Mode) -> Program {
        let gates =
            (!self.endpoint_slices).then_some("--feature-gates=EndpointSliceProxying=false");
        let pod_ranges = if self.dual_stack {
            "10.244.0.0/16,fd00:244::/32"
        } else {
            "10.244.0.0/16"
        };
        node.program(&self.program)
            .env("PATH", &self.path)
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--hostname-override={}", node.name()))
            .arg(format!("--cluster-cidr={pod_ranges}"))
            .arg(format!("--proxy-mode={mode}"))
            // Every sync of 1.20 puts its rules in another order; let changes alone cause them.
            .args(["--iptables-sync-period=1h", "--iptables-min-sync-period=0s"])
            // Limits of the whole kernel, which nobody may set from a user namespace.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .arg("--conntrack-tcp-timeout-established=0")
            .arg("--conntrack-tcp-timeout-close-wait=0")
            .arg("--oom-score-adj=0")
            .args(["--healthz-bind-address=127.0.0.1:10256", "--v=2"])
            .arg("--metrics-bind-address=127.0.0.1:10249")
            .args(gates)
    }
}

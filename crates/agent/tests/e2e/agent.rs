//! The agent under test.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgemesh_lab::{Node, Place, Program};

/// Which Services the agent leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilterMode {
    /// Those with the label: the default, so the configuration does not mention it.
    IfLabelExists,
    /// Those without.
    IfLabelDoesNotExist,
}

/// `modules.edgeProxy.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// As kube-proxy does it: the default, so the configuration does not mention it.
    Auto,
    /// Chains before kube-proxy's.
    Iptables,
    /// A table before everybody's.
    Nftables,
}

/// `modules.edgeProxy.datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datapath {
    /// The kernel takes what it can: the default, so the configuration does not mention it.
    Hybrid,
    /// The agent takes everything.
    User,
}

/// The relay node of `modules.edgeTunnel.relayNodes`.
#[derive(Debug, Clone)]
pub(crate) struct RelayNode {
    /// Its name.
    pub(crate) node: String,
    /// Where all nodes reach it.
    pub(crate) address: Ipv4Addr,
}

/// How the agent of a node is started.
#[derive(Debug)]
pub(crate) struct AgentSetup {
    /// For agents started from now on.
    pub(crate) backend: Backend,
    /// For agents started from now on.
    pub(crate) datapath: Datapath,
    /// With a tunnel and this relay, for agents started from now on; none by default.
    pub(crate) tunnel: Option<RelayNode>,
    config: PathBuf,
    state: PathBuf,
    kubeconfig: PathBuf,
}

impl AgentSetup {
    /// An agent that keeps its files in `folder` and reaches the cluster by `kubeconfig`.
    pub(crate) fn new(folder: &Path, kubeconfig: PathBuf) -> Self {
        Self {
            backend: Backend::Auto,
            datapath: Datapath::Hybrid,
            tunnel: None,
            config: folder.join("edgemesh-agent.yaml"),
            state: folder.join("state"),
            kubeconfig,
        }
    }

    /// `edgemesh-agent run` on `node`.
    pub(crate) fn run(&self, node: &Node, mode: FilterMode) -> Result<Program> {
        let config = self.configuration(mode);
        std::fs::write(&self.config, config)
            .with_context(|| format!("cannot write {}", self.config.display()))?;
        Ok(program(node)
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .args(["--node-name", node.name()])
            .arg("--state-dir")
            .arg(&self.state))
    }

    /// `edgemesh-agent status --output json` on `node`.
    pub(crate) fn status(&self, node: &Node) -> Program {
        program(node).args(["status", "--output", "json"])
    }

    /// `edgemesh-agent cleanup` on `node`.
    pub(crate) fn cleanup(&self, node: &Node) -> Program {
        program(node).arg("cleanup")
    }

    fn configuration(&self, mode: FilterMode) -> String {
        let kubeconfig = self.kubeconfig.display();
        let mode = match mode {
            FilterMode::IfLabelExists => String::new(),
            FilterMode::IfLabelDoesNotExist => {
                format!("    serviceFilterMode: {mode}\n")
            }
        };
        let backend = match self.backend {
            Backend::Auto => String::new(),
            Backend::Iptables | Backend::Nftables => {
                format!("    backend: {}\n", self.backend)
            }
        };
        let datapath = match self.datapath {
            Datapath::Hybrid => "",
            Datapath::User => "    datapath: user\n",
        };
        let tunnel = match &self.tunnel {
            None => String::new(),
            Some(RelayNode { node, address }) => format!(
                "  edgeTunnel:\n    enable: true\n    relayNodes:\n    - nodeName: {node}\n      \
                 advertiseAddress: [{address}]\n"
            ),
        };
        format!(
            "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
             kind: EdgeMeshAgent\n\
             kubeAPIConfig:\n\
             \x20 kubeConfig: {kubeconfig}\n\
             modules:\n\
             \x20 edgeProxy:\n\
             \x20   enable: true\n\
             {mode}{backend}{datapath}{tunnel}"
        )
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

impl fmt::Display for FilterMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::IfLabelExists => "FilterIfLabelExists",
            Self::IfLabelDoesNotExist => "FilterIfLabelDoesNotExists",
        })
    }
}

fn program(node: &Node) -> Program {
    node.program(env!("CARGO_BIN_EXE_edgemesh-agent"))
}

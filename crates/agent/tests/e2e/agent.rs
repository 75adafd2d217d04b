//! The agent under test.

use std::fmt;
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

/// How the agent of a node is started.
#[derive(Debug)]
pub(crate) struct AgentSetup {
    config: PathBuf,
    state: PathBuf,
    kubeconfig: PathBuf,
}

impl AgentSetup {
    /// An agent that keeps its files in `folder` and reaches the cluster by `kubeconfig`.
    pub(crate) fn new(folder: &Path, kubeconfig: PathBuf) -> Self {
        Self {
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
        format!(
            "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
             kind: EdgeMeshAgent\n\
             kubeAPIConfig:\n\
             \x20 kubeConfig: {kubeconfig}\n\
             modules:\n\
             \x20 edgeProxy:\n\
             \x20   enable: true\n\
             {mode}"
        )
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

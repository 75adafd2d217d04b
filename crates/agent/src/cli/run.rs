//! `edgemesh-agent run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;

use crate::config::{self, Config};
use crate::node_name::node_name;
use crate::supervisor::{self, Start};
use crate::{file_limit, log_output, privileges};

/// Flags override the configuration file.
#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Configuration file: EdgeMesh's `EdgeMeshAgent` v1alpha1. Without one, everything is
    /// at its default and the agent is enabled
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node in Kubernetes [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Take Services, Endpoints, EndpointSlices and Nodes from the YAML files of this folder
    /// instead of the Kubernetes API
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Where the last good catalog is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgemesh")]
    state_dir: PathBuf,
    /// Take over from an agent that holds this node instead of refusing to start: it serves
    /// until this one is ready, and then the connections it has. For the upgrade of a
    /// DaemonSet with maxSurge
    #[arg(long)]
    take_over: bool,
}

/// Runs the agent until it is told to end.
pub(super) fn execute(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let at = SystemTime::now();
    let (config, warnings) = match &arguments.config {
        Some(path) => {
            let parsed = config::read(path)?;
            (parsed.config, parsed.warnings)
        }
        None => (Config::without_file(), Vec::new()),
    };
    log_output::start(config.common.log_form, config.common.log_level)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let node = node_name(arguments.node_name.as_deref())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %node,
        config = %arguments.config.as_deref().unwrap_or(Path::new("none")).display(),
        "starting"
    );
    tracing::debug!("effective configuration:\n{config}");
    privileges::check()?;
    let files = file_limit::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("edgemesh")
        .build()
        .context("start the threads of the agent")?;
    runtime.block_on(supervisor::run(Start {
        config,
        config_file: arguments.config.clone(),
        node,
        manifests: arguments.manifests.clone(),
        state_dir: arguments.state_dir.clone(),
        take_over: arguments.take_over,
        open_files: files,
        at,
    }))?;
    Ok(ExitCode::SUCCESS)
}

//! `edgemesh-agent run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use tokio::runtime::Runtime;

use crate::config::{self, Config};
use crate::node_name::node_name;
use crate::supervisor::{self, Start};
use crate::{file_limit, log_output, privileges};

/// How long what is left of the agent's tasks may take to let go of its threads.
const LAST_TASKS: Duration = Duration::from_secs(1);

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
    let agent = supervisor::run(Start {
        config,
        config_file: arguments.config.clone(),
        node,
        manifests: arguments.manifests.clone(),
        state_dir: arguments.state_dir.clone(),
        take_over: arguments.take_over,
        open_files: files,
        at,
    });
    run_to_the_end(runtime, agent)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `agent`, and ends what is left of its tasks.
fn run_to_the_end<T>(runtime: Runtime, agent: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(agent);
    // Dropped, the runtime would wait for ever for a task that never yields.
    runtime.shutdown_timeout(LAST_TASKS);
    ended
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn a_task_that_never_yields_does_not_keep_the_agent_from_its_end() {
        let (_kept, never) = channel::<()>();
        let (runs, running) = channel();
        let runtime = Runtime::new().unwrap();
        let stuck = async move {
            runs.send(()).unwrap();
            never.recv()
        };
        let mut tasks = JoinSet::new();
        tasks.spawn_on(stuck, runtime.handle());
        running.recv().unwrap();
        assert_eq!(run_to_the_end(runtime, async { "ended" }), "ended");
    }
}

//! `edgemesh-agent check`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::output::Output;
use crate::check::{Grade, Wanted, findings, probe, screen};
use crate::config::{self, Config};
use crate::node_name::node_name;

/// What the agent would be started with.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Configuration file of the agent; without one, everything is at its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check this folder of manifests instead of the way to the Kubernetes API
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Name of this node in Kubernetes [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Where the agent keeps its key
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgemesh")]
    state_dir: PathBuf,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// Looks at this host and changes nothing; exit code 1 when something fails.
pub(super) fn execute(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let config = match &arguments.config {
        Some(path) => config::read(path)?.config,
        None => Config::without_file(),
    };
    let wanted = Wanted {
        config,
        is_configured: arguments.config.is_some(),
        manifests: arguments.manifests.clone(),
        node: node_name(arguments.node_name.as_deref())?,
        state_dir: arguments.state_dir.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let report = findings(&runtime.block_on(probe(&wanted)));
    arguments.output.print(&report, screen)?;
    Ok(match report.verdict {
        Grade::Ok | Grade::Warning => ExitCode::SUCCESS,
        Grade::Fails => ExitCode::FAILURE,
    })
}

//! `edgemesh-agent cleanup`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use edgemesh_rules::CleanedUp;

use crate::health::Health;
use crate::node_lock::NodeLock;
use crate::{log_output, privileges};

/// What to clean up.
#[derive(Debug, Args)]
pub(super) struct CleanupArguments {
    /// Configuration file of the agent that ran here, for the intercept addresses if they
    /// are not the default ones
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Removes what an agent left, unless one is running.
pub(super) fn execute(arguments: &CleanupArguments) -> anyhow::Result<ExitCode> {
    log_output::start(log_output::Form::Human, "warn")?;
    let config = match &arguments.config {
        Some(path) => crate::config::read(path)?.config,
        None => crate::config::Config::without_file(),
    };
    privileges::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let _lock = NodeLock::take("edgemesh-agent cleanup".to_owned(), Health::new()).await?;
        let done = edgemesh_rules::cleanup(&[
            config.common.intercept_v4.into(),
            config.edge_proxy.intercept_v6.into(),
        ])
        .await;
        print(&done);
        Ok(if done.problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

#[expect(
    clippy::print_stdout,
    reason = "what was removed is this command's result"
)]
fn print(done: &CleanedUp) {
    print!("{done}");
}

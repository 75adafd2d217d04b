//! `edgemesh-agent explain`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::output::Output;
use crate::ask;
use crate::explain::{Kernel, Query, frontends, report, screen};

/// What to explain, and how.
#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// `[namespace/]service[:port]`, a ClusterIP, or ClusterIP:port
    #[arg(value_name = "SERVICE")]
    query: Query,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// Asks the running agent and the kernel; exit code 1 when nothing is known of the Service or port.
pub(super) fn execute(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let query = &arguments.query;
    let (answer, without_agent) = match ask::explain(query) {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(format!("{:#}", anyhow::Error::new(error)))),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let kernel = runtime.block_on(async {
        let mut kernel = Kernel::read().await;
        if answer.as_ref().is_none_or(|answer| !answer.planned) {
            kernel.list_kube_proxy().await;
        }
        let meant = frontends(query, answer.as_ref(), &kernel);
        kernel.ask_kube_proxy(&meant).await;
        kernel
    });
    let report = report(query, answer.as_ref(), without_agent, &kernel);
    arguments.output.print(&report, screen)?;
    let found = report
        .services
        .iter()
        .any(|service| !service.ports.is_empty() || service.other_ports.is_empty());
    Ok(if found {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

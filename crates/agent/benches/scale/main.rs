//! What the agent costs at a number of Services, beside a real kube-proxy on the same objects:
//! the part `kubernetes` of `make bench`.
//!
//! Everything happens in private namespaces: each run has a fresh node with a client pod; the
//! pods that answer are on another node. kube-proxy takes part where `K8S_BIN` and `ETCD` name
//! its programs (`crates/bench/run` looks for them).
//! Runs are interleaved, A B C A B C …, and a figure is the median of a contender's runs
//! with the least and the greatest in brackets.

#[path = "../../tests/e2e/api.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod api;
#[path = "../../tests/e2e/control_plane.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod control_plane;
#[path = "../../tests/e2e/credentials.rs"]
mod credentials;
#[path = "../../tests/e2e/flavoured_path.rs"]
mod flavoured_path;
#[path = "../../tests/e2e/kube_proxy.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod kube_proxy;
#[path = "../../tests/e2e/programs.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest")]
mod programs;

mod bulk_objects;
mod cluster;
mod contender;
mod measured;
mod prepared;
mod report;
mod run;
mod services;
mod stopwatch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use edgemesh_lab::{Entered, Flavour, Inside, enter_as_root_if_possible};

use crate::cluster::Cluster;
use crate::contender::Contender;
use crate::report::{OfSize, Report};
use crate::run::Run;

/// Measures the agent at a number of Services.
#[derive(Debug, Parser)]
struct Arguments {
    /// Numbers of Services, each with two endpoints.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    services: Vec<usize>,
    /// Runs of each contender at each number.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the suite's results are kept; without, tables are only printed.
    #[arg(long)]
    results: Option<PathBuf>,
    /// The flavours of iptables; kube-proxy takes part in the first.
    #[arg(long, value_delimiter = ',', default_values = ["nft", "legacy"])]
    flavours: Vec<String>,
    /// Only contenders whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// The agent to measure instead of the one built with this program.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_edgemesh-agent"))]
    agent: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match enter_as_root_if_possible()? {
        Entered::Over(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Entered::Inside(inside) => {
            bench(&inside, &arguments)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn bench(inside: &Inside, arguments: &Arguments) -> Result<()> {
    let in_user_namespace = inside.is_in_user_namespace();
    let mut report = Report::new(arguments.rounds, &arguments.agent, in_user_namespace);
    let mut cluster = Cluster::start(&inside.lab, &arguments.agent, &mut report)?;
    let mut main_flavour = true;
    for flavour in Flavour::ALL {
        if !arguments.flavours.iter().any(|name| name == flavour.name()) {
            continue;
        }
        for &count in &arguments.services {
            let contenders = contenders(
                inside,
                &mut cluster,
                flavour,
                count,
                main_flavour,
                &mut report,
            )?;
            let rounds = if main_flavour { arguments.rounds } else { 1 };
            let mut table = OfSize::new(flavour, count);
            for round in 0..rounds {
                for &contender in &contenders {
                    if !contender.to_string().contains(&arguments.only) {
                        continue;
                    }
                    let run = Run {
                        contender,
                        flavour,
                        count,
                        round,
                    };
                    table.add(contender, &run.measure(&inside.lab, &cluster)?);
                }
            }
            report.keep(table);
        }
        main_flavour = false;
    }
    match &arguments.results {
        Some(results) => report.write(results),
        None => Ok(()),
    }
}

/// Who takes part at a number of Services: beside the main flavour, the agent alone.
fn contenders(
    inside: &Inside,
    cluster: &mut Cluster,
    flavour: Flavour,
    count: usize,
    is_main: bool,
    report: &mut Report,
) -> Result<Vec<Contender>> {
    if !is_main || !cluster.has_control_plane() {
        return Ok(vec![Contender::AgentOfManifests]);
    }
    cluster.publish(count)?;
    let mut contenders = vec![Contender::AgentOfManifests, Contender::AgentOfApi];
    match Contender::why_kube_proxy_cannot(inside, flavour, count) {
        // Tables compare with the first line.
        None => contenders.insert(0, Contender::KubeProxy),
        Some(reason) => report.remark(format!("kube-proxy is left out: {reason}")),
    }
    Ok(contenders)
}

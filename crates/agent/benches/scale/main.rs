//! What the agent costs at a number of Services, beside kube-proxy on the same objects.
//!
//! `make bench` builds and runs it. Everything happens in private namespaces: each run has
//! a fresh node with a client pod; the pods that answer are on another node. kube-proxy
//! takes part where `K8S_BIN` and `ETCD` name its programs (`benches/run` looks for them).
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
mod idle_connections;
mod pauses;
mod process_figures;
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
use crate::report::{Report, say};
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
    /// Idle TCP connections to measure memory with.
    #[arg(long, default_value_t = 2000)]
    connections: usize,
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
    report::say_where_this_runs(inside.is_in_user_namespace(), &arguments.agent);
    let mut cluster = Cluster::start(&inside.lab, &arguments.agent)?;
    let mut main_flavour = true;
    for flavour in Flavour::ALL {
        if !arguments.flavours.iter().any(|name| name == flavour.name()) {
            continue;
        }
        measure_sizes(inside, arguments, &mut cluster, flavour, main_flavour)?;
        if main_flavour {
            idle_connections::measure(&inside.lab, &cluster, flavour, arguments.connections)?;
        }
        main_flavour = false;
    }
    Ok(())
}

/// All numbers of Services in one flavour. Beside the main flavour the others get the
/// agent alone, and one round.
fn measure_sizes(
    inside: &Inside,
    arguments: &Arguments,
    cluster: &mut Cluster,
    flavour: Flavour,
    is_main: bool,
) -> Result<()> {
    let rounds = if is_main { arguments.rounds } else { 1 };
    for &count in &arguments.services {
        let mut contenders = vec![Contender::AgentOfManifests];
        if is_main && cluster.has_control_plane() {
            cluster.publish(count)?;
            contenders.push(Contender::AgentOfApi);
            match Contender::why_kube_proxy_cannot(inside, flavour, count) {
                None => contenders.push(Contender::KubeProxy),
                Some(reason) => say(&format!("kube-proxy is left out: {reason}")),
            }
        }
        contenders.retain(|contender| contender.to_string().contains(&arguments.only));
        let mut report = Report::new(flavour, count, &contenders);
        for round in 0..rounds {
            for &contender in &contenders {
                let run = Run {
                    contender,
                    flavour,
                    count,
                    round,
                };
                report.add(contender, run.measure(&inside.lab, cluster)?);
            }
        }
        report.print();
    }
    Ok(())
}

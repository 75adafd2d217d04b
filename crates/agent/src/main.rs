//! `edgemesh-agent`: the node agent that lets pods and hosts reach every Service by
//! its ClusterIP, beside kube-proxy.

mod admin;
mod api_way;
mod cli;
mod config;
mod file_limit;
mod health;
mod log_output;
mod metrics;
mod node_lock;
mod node_name;
mod privileges;
mod reload;
#[cfg(test)]
mod scenarios;
mod supervisor;
mod sync;
mod sync_figures;
mod termination;
mod wanted;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::Arguments::parse().execute()
}

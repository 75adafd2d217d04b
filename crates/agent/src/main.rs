//! `edgemesh-agent`: the node agent that lets pods and hosts reach every Service by
//! its ClusterIP, beside kube-proxy.

mod admin;
mod answers;
mod api_way;
mod ask;
mod assembly;
mod check;
mod cli;
mod config;
mod explain;
mod file_limit;
mod hand_over;
mod health;
mod holding;
mod in_force;
mod log_output;
mod metrics;
mod moment;
mod node_lock;
mod node_name;
mod peer_user;
mod precedence_record;
mod privileges;
mod pulse;
mod reload;
mod repair_pace;
#[cfg(test)]
mod scenarios;
mod status;
mod succession;
mod supervisor;
mod sync;
mod sync_figures;
mod termination;
mod text;
mod tunnel;
mod udp_flows;
mod undoings;
mod wanted;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::Arguments::parse().execute()
}

//! Instructions of the agent for fixed work, counted by valgrind: for changes that are too
//! small to be seen on a machine that does other things, too.
//!
//! What starting and ending takes is counted by itself and subtracted. System calls count
//! as nothing: what the kernel does is not seen here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, Lab, Place, Program, await_ok, leave_kubelets_signs,
};

use super::services::bulk;
use super::{Effort, Found};
use crate::contender::agent_start::configurations;
use crate::contender::{Backend, Datapath, find};
use crate::load::requests::Crowd;
use crate::load::{BULK, ONCE, REQUESTS, Until, bulk as bytes, connections, requests};
use crate::processes::Processes;
use crate::results::{Better, Comparison};
use crate::stage::{CLUSTER_IP, OneNode};

/// An agent is some fifty times slower here.
const PATIENCE: Duration = Duration::from_secs(120);

/// Fixed work and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing but starting, and ending.
    Nothing,
    /// Services that are there from the beginning.
    Services(u64),
    /// Connections through the user path.
    Connections(u64),
    /// Requests over connections that stay, through the user path.
    Requests(u64),
    /// Megabytes (1e6) through the user path.
    Megabytes(u64),
}

impl Work {
    fn measure(self) -> (&'static str, u64) {
        match self {
            Self::Nothing => ("start and end, million instructions", 1),
            Self::Services(count) => ("a Service at the start, thousand", count),
            Self::Connections(count) => ("a connection, thousand", count),
            Self::Requests(count) => ("a request, thousand", count),
            Self::Megabytes(count) => ("a megabyte, thousand", count),
        }
    }
}

const WORKS: [Work; 5] = [
    Work::Nothing,
    Work::Services(1000),
    Work::Connections(300),
    Work::Requests(2000),
    Work::Megabytes(50),
];

/// The agent, and the one that `base` names before it, if it names one.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    ensure!(
        find("valgrind").is_some(),
        "no valgrind: apt-get install --no-install-recommends valgrind"
    );
    let agents: Vec<(&str, &Path)> = effort
        .base
        .iter()
        .map(|base| ("agent to compare with", base.as_path()))
        .chain([("agent", effort.agent.as_path())])
        .collect();
    let measures = WORKS.map(|work| (work.measure().0, Better::Low));
    let title = "Instructions in user mode for fixed work";
    let mut comparison = Comparison::new("instructions", title, &measures);
    for round in 0..effort.rounds {
        for (name, agent) in &agents {
            let run = Run {
                lab,
                agent,
                name: format!("i{round}-{}", name.len()),
            };
            found.note(&mut comparison, name, run.all());
        }
    }
    found.keep(comparison);
    Ok(())
}

struct Run<'r> {
    lab: &'r Lab,
    agent: &'r Path,
    name: String,
}

impl Run<'_> {
    fn all(&self) -> Result<Vec<Option<f64>>> {
        let mut figures = Vec::new();
        let mut nothing = 0.0;
        for (place, work) in WORKS.into_iter().enumerate() {
            let count = self.count(work, place)? as f64;
            let (_, units) = work.measure();
            figures.push(Some(match work {
                Work::Nothing => {
                    nothing = count;
                    count / 1e6
                }
                Work::Services(_)
                | Work::Connections(_)
                | Work::Requests(_)
                | Work::Megabytes(_) => (count - nothing) / 1e3 / units as f64,
            }));
        }
        Ok(figures)
    }

    /// All instructions of a process that starts, does the work and ends.
    fn count(&self, work: Work, place: usize) -> Result<u64> {
        let stage = OneNode::create(self.lab, &format!("{}-{place}", self.name))?;
        leave_kubelets_signs(&stage.node, Flavour::Nft)?;
        let agent = Agent::prepare(self.lab, &stage.node, self.agent)?;
        let mut services: Vec<ClusterService> = vec![stage.service()];
        if let Work::Services(count) = work {
            services.extend((0..usize::try_from(count)?).map(bulk));
        }
        agent.publish(&services)?;
        let mut counted = Err(anyhow!("there is no configuration"));
        for text in configurations(Datapath::User, Backend::Nftables) {
            agent.configure(&text)?;
            counted = counted_run(&agent, || carry_out(&stage, work));
            if counted.is_ok() {
                break;
            }
        }
        stage.clear()?;
        counted
    }
}

fn carry_out(stage: &OneNode, work: Work) -> Result<()> {
    let client = stage.client.namespace();
    let (to, nobody) = (|port| (CLUSTER_IP, port).into(), Processes::default());
    match work {
        Work::Nothing | Work::Services(_) => Ok(()),
        Work::Connections(count) => {
            connections::run(client, to(ONCE), 1, Until::Done(count), &nobody).map(|_| ())
        }
        Work::Requests(count) => {
            let crowd = Crowd {
                connections: 1,
                threads: 1,
            };
            requests::run(client, to(REQUESTS), crowd, Until::Done(count), &nobody).map(|_| ())
        }
        Work::Megabytes(count) => {
            bytes::send(client, to(BULK), count * 1_000_000, stage.load.counted())
        }
    }
}

/// Runs the agent under valgrind, does something when it is ready, ends it and reads the sum.
fn counted_run(agent: &Agent, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let log = agent.state_folder().with_extension("callgrind");
    let _ = fs::remove_file(&log);
    let valgrind = Program::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--trace-children=no", "--fair-sched=yes"]);
    let mut running = agent.run_command().run_by(valgrind).start(&log)?;
    let mut ended = None;
    await_ok(PATIENCE, "the agent is ready", || {
        ended = running.ended()?;
        match ended {
            Some(_) => Ok(()),
            None => agent.get("/readyz").map(|_| ()),
        }
    })
    .with_context(|| running.log_tail(20))?;
    ensure!(ended.is_none(), "it ended: {}", running.log_tail(20));
    work().with_context(|| running.log_tail(20))?;
    running.stop(PATIENCE)?;
    collected(&running.log()).with_context(|| running.log_tail(20))
}

/// `==77== Collected : 12345`.
fn collected(log: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.contains("Collected :"))?;
    line.rsplit_once(':')?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_found_among_what_the_agent_says() {
        let log = "==5== Callgrind\nINFO ready: all\n==5== Events    : Ir\n\
                   ==5== Collected : 1234567\n==5==\n";
        assert_eq!(collected(log), Some(1_234_567));
        assert_eq!(collected("INFO\n"), None);
    }
}

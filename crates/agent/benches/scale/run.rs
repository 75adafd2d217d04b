//! One run: one contender on a fresh node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_bench::load::pause;
use edgemesh_bench::processes::Processes;
use edgemesh_lab::{Family, Flavour, Lab, Node, Pod, Program, Table, await_ok};

use crate::cluster::Cluster;
use crate::contender::Contender;
use crate::measured::Measured;
use crate::prepared::Prepared;
use crate::services;
use crate::stopwatch::until_answered;

/// Between one added Service and the next: longer than the least time that kube-proxy
/// leaves between two of its syncs (1 s), so that it waits for none.
const BETWEEN_ADDITIONS: Duration = Duration::from_millis(1500);
/// How long nothing happens, to see what that costs.
const IDLE: Duration = Duration::from_secs(6);
/// How long a program may go on after its rules are in.
const SETTLED: Duration = Duration::from_secs(60);

/// How much of its log an error shows.
const SHOWN_LINES: usize = 20;

/// Who is measured on what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) contender: Contender,
    pub(crate) flavour: Flavour,
    pub(crate) count: usize,
    pub(crate) round: usize,
}

impl Run {
    /// Carries it out.
    pub(crate) fn measure(&self, lab: &Lab, cluster: &Cluster) -> Result<Measured> {
        let stage = Stage::new(lab, self)?;
        let measured = self
            .measure_on(lab, cluster, &stage)
            .with_context(|| format!("{}, {} Services", self.contender, self.count))
            .with_context(|| format!("the end of its log:\n{}", stage.log_tail(lab)));
        stage.clear()?;
        measured
    }

    fn measure_on(&self, lab: &Lab, cluster: &Cluster, stage: &Stage) -> Result<Measured> {
        let Stage { node, client } = stage;
        let prepared = Prepared::new(self.contender, lab, node, self.flavour, cluster, self.count)?;
        let answering = services::answering(&cluster.servers);
        let (all_in, process) =
            until_answered(client, &answering, || prepared.start(node, &stage.log(lab)))?;
        let own = Processes::of(&[process.pid()]);
        await_ok(SETTLED, "its children have ended", || {
            ensure!(!own.have_children()?, "one still runs");
            Ok(())
        })?;
        let cpu_until_all_in = own.processor_time()?;
        self.check_rules(node)?;
        let mut added = Vec::new();
        for service in cluster.added() {
            pause(BETWEEN_ADDITIONS);
            let (took, ()) = until_answered(client, &service, || prepared.add(&service))?;
            added.push(took);
        }
        pause(BETWEEN_ADDITIONS);
        let before = own.scheduled_time()?;
        pause(IDLE);
        let measured = Measured {
            all_in,
            cpu_until_all_in,
            added,
            idle_cpu: (own.scheduled_time()? - before).div_f64(IDLE.as_secs_f64()),
            memory: own.memory()?,
        };
        drop(process);
        prepared.take_away(&cluster.added())?;
        Ok(measured)
    }

    /// That one Service answers does not show that all have their rule.
    fn check_rules(&self, node: &Node) -> Result<()> {
        let (chain, target) = match self.contender {
            // Of many, each has one rule, in a chain that its address picks; of few, one in the
            // chains of both hooks. The kernel's share may be in a chain of its own.
            Contender::AgentOfManifests | Contender::AgentOfApi => {
                ("-A EDGEMESH-PORTALS-", "default/")
            }
            Contender::KubeProxy => ("-A KUBE-SERVICES ", "-j KUBE-SVC-"),
        };
        let saved = self.flavour.save(node, Family::V4, Table::Nat)?;
        let rules = saved
            .lines()
            .filter(|line| line.contains(chain) && line.contains(target))
            .filter(|line| !line.starts_with("-A EDGEMESH-PORTALS-HOST "))
            .count();
        ensure!(
            rules >= self.count,
            "only {rules} of {} Services have a rule",
            self.count
        );
        Ok(())
    }
}

/// A fresh node with a pod to ask from.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) client: Pod,
}

impl Stage {
    fn new(lab: &Lab, run: &Run) -> Result<Self> {
        let who = match run.contender {
            Contender::AgentOfManifests => "a",
            Contender::AgentOfApi => "b",
            Contender::KubeProxy => "c",
        };
        let name = format!("{who}-{}-{}-{}", run.flavour, run.count, run.round);
        Self::named(lab, &name)
    }

    pub(crate) fn named(lab: &Lab, name: &str) -> Result<Self> {
        let node = lab.node(name).create()?;
        let client = node.pod(&format!("client-{name}")).create()?;
        Ok(Self { node, client })
    }

    /// Where what runs on it writes to.
    pub(crate) fn log(&self, lab: &Lab) -> PathBuf {
        lab.folder().join(format!("{}.log", self.node.name()))
    }

    fn log_tail(&self, lab: &Lab) -> String {
        let log = std::fs::read_to_string(self.log(lab)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Takes it down: tens of thousands of rules are not to weigh on the next run.
    pub(crate) fn clear(self) -> Result<()> {
        for name in [self.client.name(), self.node.name()] {
            Program::new("ip").args(["netns", "delete", name]).run()?;
        }
        Ok(())
    }
}

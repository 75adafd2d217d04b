//! `edgemesh-agent playground`: the main job on this machine, in private namespaces, with
//! every promise checked.
//!
//! Sites, nodes, pods and kube-proxy's rules are the lab's; the agents, the kernel and the
//! requests are real.

mod across;
mod cluster;
mod contract;
mod crossing;
mod paint;
mod path;
mod request;
mod screen;
mod times;
mod way;

use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::traffic::HeldConnection;
use edgemesh_lab::{Entered, Flavour, Inside, Signal, await_ok, await_until, promises};

use cluster::{Cluster, Member};
use screen::Screen;
use times::ms;
use way::Way;

/// How long to wait for what comes too late, to tell how late.
const PATIENCE: Duration = Duration::from_secs(15);

/// What `playground` can be told.
#[derive(Debug, clap::Args)]
pub(super) struct PlaygroundArguments {
    /// Keep everything up before the agents are stopped, to look around; Ctrl-C goes on
    #[arg(long)]
    hold: bool,
    /// Which of the two rule stores of iptables kube-proxy and the agents use
    #[arg(long, value_enum, default_value_t = FlavourArgument::Nft)]
    flavour: FlavourArgument,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FlavourArgument {
    Nft,
    Legacy,
}

/// Runs the playground; fails when a promise is not kept.
pub(super) fn execute(arguments: &PlaygroundArguments) -> Result<ExitCode> {
    let inside = match edgemesh_lab::enter().context("the playground needs a place to be")? {
        Entered::Over(code) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Entered::Inside(inside) => inside,
    };
    let flavour = match arguments.flavour {
        FlavourArgument::Nft => Flavour::Nft,
        FlavourArgument::Legacy => Flavour::Legacy,
    };
    let start = Instant::now();
    let mut tour = Tour {
        cluster: Cluster::build(&inside.lab, flavour)?,
        screen: Screen::new(),
        held: None,
        inside,
    };
    tour.go(arguments.hold)?;
    tour.screen.trouble(&tour.cluster);
    Ok(tour.screen.verdict(start.elapsed(), arguments.hold))
}

/// The tour of what the agent promises, in one cluster.
struct Tour {
    inside: Inside,
    cluster: Cluster,
    screen: Screen,
    /// From `edge1` to `edge2`, through all that happens.
    held: Option<HeldConnection>,
}

impl Tour {
    fn go(&mut self, hold: bool) -> Result<()> {
        self.screen.introduction(&self.cluster);
        self.kube_proxy_alone()?;
        self.the_agents_start()?;
        let steps = [
            Self::requests_cross,
            Self::behind_a_symmetric_nat,
            Self::an_uplink_is_cut,
            Self::a_service_is_left_to_kube_proxy,
        ];
        for step in steps {
            ensure!(!self.inside.interrupted(), "interrupted");
            if let Err(error) = step(self) {
                self.screen.promise(Err(error));
            }
        }
        ensure!(!self.inside.interrupted(), "interrupted");
        if hold {
            self.hold()?;
        }
        self.the_agents_stop()
    }

    fn the_agents_start(&mut self) -> Result<()> {
        self.screen.step("An agent starts on each node, beside it");
        let begin = Instant::now();
        for member in self.cluster.members_mut() {
            member.agent.start_without_waiting()?;
        }
        for member in self.cluster.members_mut() {
            member.agent.await_ready()?;
        }
        let ready = begin.elapsed();
        let in_touch = self.cluster.members().into_iter().try_for_each(|member| {
            let mut others = self.cluster.members().to_vec();
            others.retain(|other| other.name() != member.name());
            await_ok(PATIENCE, "all nodes can meet", || {
                member.check_in_touch(&others)
            })
        });
        self.screen.promise(in_touch.map(|()| {
            format!(
                "all three ready after {}; after {} each knows the others' keys and where to meet \
                 them",
                ms(ready),
                ms(begin.elapsed())
            )
        }));
        self.show_precedence()
    }

    fn hold(&mut self) -> Result<()> {
        self.screen.way_in(&self.cluster, &self.inside.nsenter());
        let (inside, mut members) = (&self.inside, self.cluster.members_mut());
        let mut ended = None;
        await_until(Duration::MAX, "the user goes on", || {
            ended = members.iter_mut().find_map(|member| {
                let status = member.agent.process()?.ended().ok()??;
                Some((status, member.agent.log().unwrap_or_default()))
            });
            inside.interrupted() || ended.is_some()
        })?;
        match ended {
            Some((status, log)) => bail!("an agent ended by itself ({status}): {log}"),
            None => Ok(()),
        }
    }

    fn the_agents_stop(&mut self) -> Result<()> {
        self.screen.step("The agents are told to stop (SIGTERM)");
        let foreign = self.foreign_rules()?;
        drop(self.held.take());
        let start = Instant::now();
        let mut ends = Vec::new();
        // The relay last: the others say farewell through it.
        let Cluster {
            cloud,
            edge1,
            edge2,
            ..
        } = &mut self.cluster;
        for members in [vec![edge1, edge2], vec![cloud]] {
            ends.extend(stop(members)?);
        }
        let took = start.elapsed();
        let stopped = || {
            for (name, status) in ends {
                ensure!(status.success(), "the one on {name} ended with {status}");
            }
            for member in self.cluster.members() {
                promises::check_nothing_left(&member.node)
                    .with_context(|| format!("on {}", member.name()))?;
            }
            Ok(format!(
                "gone after {}, and all they had put on their nodes",
                ms(took)
            ))
        };
        self.screen.promise(stopped());
        let kept = || {
            let now = self.foreign_rules()?;
            ensure!(
                now == foreign,
                "rules of others changed, from\n{foreign}to\n{now}"
            );
            let count = now.lines().filter(|line| line.starts_with("-A ")).count();
            Ok(format!("all {count} rules of others are as they were"))
        };
        self.screen.promise(kept());
        self.ask_own_service(Way::KubeProxy);
        self.nobody_else_was_contacted()
    }

    fn nobody_else_was_contacted(&mut self) -> Result<()> {
        let strays = self.cluster.strays()?;
        let listed: Vec<String> = strays.iter().map(ToString::to_string).collect();
        let none = || {
            ensure!(listed.is_empty(), "{}", listed.join("; "));
            Ok(
                "nothing went to a public address outside the cluster, to name servers or for \
                 port mappings"
                    .to_owned(),
            )
        };
        self.screen.promise(none());
        Ok(())
    }

    fn foreign_rules(&self) -> Result<String> {
        self.cluster
            .members()
            .iter()
            .map(|member| promises::foreign_rules(&member.node, self.cluster.flavour))
            .collect()
    }
}

/// Tells the agents to end, all at once, and returns how they did.
fn stop(members: Vec<&mut Member>) -> Result<Vec<(String, ExitStatus)>> {
    let mut ending = Vec::new();
    for member in members {
        let name = member.name().to_owned();
        let process = member.agent.process();
        let process = process.with_context(|| format!("no agent runs on {name}"))?;
        process.signal(Signal::SIGTERM)?;
        ending.push((name, process));
    }
    ending
        .into_iter()
        .map(|(name, process)| Ok((name, process.wait(PATIENCE)?)))
        .collect()
}

//! `edgemesh-agent playground`: the main job on this machine, in private namespaces, with
//! every promise checked.
//!
//! Nodes, pods and kube-proxy's rules are the lab's; the agent, the kernel and the requests
//! are real.

mod screen;
mod site;
mod way;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{Entered, Flavour, Inside, await_ok, await_until, promises};

use screen::Screen;
use site::{ADDED_LABEL, Site};
use way::Way;

/// Within what time a label on a live Service takes effect.
const LABEL_PROMISE: Duration = Duration::from_secs(1);
/// Within what time chains that were flushed or overtaken are repaired.
const REPAIR_PROMISE: Duration = Duration::from_secs(2);
/// How long to wait for what comes too late, to tell how late.
const PATIENCE: Duration = Duration::from_secs(15);

/// What `playground` can be told.
#[derive(Debug, clap::Args)]
pub(super) struct PlaygroundArguments {
    /// Keep everything up before the agent is stopped, to look around; Ctrl-C goes on
    #[arg(long)]
    hold: bool,
    /// Which of the two rule stores of iptables kube-proxy and the agent use
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
        site: Site::build(&inside.lab, flavour)?,
        screen: Screen::default(),
        inside,
    };
    tour.go(arguments.hold)?;
    Ok(tour.screen.verdict(start.elapsed(), arguments.hold))
}

/// The tour of what the agent promises, on one site.
struct Tour {
    inside: Inside,
    site: Site,
    screen: Screen,
}

impl Tour {
    fn go(&mut self, hold: bool) -> Result<()> {
        self.screen.introduction(&self.site);
        let steps = [
            Self::kube_proxy_alone,
            Self::the_agent_starts,
            Self::a_label_is_added,
            Self::the_label_is_removed,
            Self::everything_is_flushed,
        ];
        for step in steps {
            ensure!(!self.inside.interrupted(), "interrupted");
            step(self)?;
        }
        if hold {
            self.hold()?;
        }
        self.the_agent_stops()
    }

    fn kube_proxy_alone(&mut self) -> Result<()> {
        self.screen.step("kube-proxy alone");
        self.site.start_kube_proxy()?;
        self.requests(Way::KubeProxy);
        Ok(())
    }

    fn the_agent_starts(&mut self) -> Result<()> {
        self.screen.step("The agent starts beside it");
        let start = Instant::now();
        self.site.agent.start()?;
        let ready = start.elapsed();
        self.screen.show_nat(&self.site)?;
        self.screen.promise(
            promises::check_precedence(&self.site.node, self.site.flavour, &[])
                .map(|()| format!("ready after {}, its chains before KUBE-SERVICES", ms(ready))),
        );
        self.screen
            .promise(self.site.check_only_portals_have_rules());
        self.requests(Way::Agent);
        Ok(())
    }

    fn a_label_is_added(&mut self) -> Result<()> {
        self.screen
            .step(&format!("default/web gets the label {ADDED_LABEL}"));
        let open = self.site.open_connection();
        let start = Instant::now();
        self.site.set_label(true)?;
        let gone = self.await_rules("default/web", 0, start);
        self.screen.promise(gone.map(|took| {
            format!(
                "its rules are out of both chains after {}, no others",
                ms(took)
            )
        }));
        self.requests_to_web(Way::KubeProxy);
        self.screen.promise(
            open.and_then(|mut open| open.goes_on())
                .map(|()| "a connection through the agent from before goes on".to_owned()),
        );
        Ok(())
    }

    fn the_label_is_removed(&mut self) -> Result<()> {
        self.screen.step("The label is removed");
        let start = Instant::now();
        self.site.set_label(false)?;
        let rules = self.site.rules_per_web_port();
        let back = self.await_rules("default/web", rules, start);
        self.screen
            .promise(back.map(|took| format!("its rules are back after {}", ms(took))));
        self.requests_to_web(Way::Agent);
        Ok(())
    }

    fn everything_is_flushed(&mut self) -> Result<()> {
        self.screen
            .step("Somebody flushes the nat table; kube-proxy comes back first and on top");
        let start = Instant::now();
        self.site.flush_and_restart_kube_proxy()?;
        let (node, flavour) = (&self.site.node, self.site.flavour);
        let repaired = await_ok(PATIENCE, "EDGEMESH- stands before KUBE-SERVICES", || {
            promises::check_precedence(node, flavour, &["default/web:http"])
        })
        .and_then(|()| in_time(start.elapsed(), REPAIR_PROMISE));
        self.screen.promise(repaired.map(|took| {
            format!(
                "EDGEMESH- stands before KUBE-SERVICES again after {}",
                ms(took)
            )
        }));
        self.requests(Way::Agent);
        Ok(())
    }

    fn hold(&mut self) -> Result<()> {
        self.screen.way_in(&self.site, &self.inside.nsenter());
        let (inside, agent) = (&self.inside, &mut self.site.agent);
        let mut ended = None;
        await_until(Duration::MAX, "the user goes on", || {
            ended = agent
                .process()
                .and_then(|process| process.ended().ok())
                .flatten();
            inside.interrupted() || ended.is_some()
        })?;
        match ended {
            Some(status) => bail!("the agent ended by itself ({status}): {}", agent.log()?),
            None => Ok(()),
        }
    }

    fn the_agent_stops(&mut self) -> Result<()> {
        self.screen.step("The agent is told to stop (SIGTERM)");
        let foreign = promises::foreign_rules(&self.site.node, self.site.flavour)?;
        let start = Instant::now();
        let status = self.site.agent.stop()?;
        let took = start.elapsed();
        let stopped = || {
            ensure!(status.success(), "it ended with {status}");
            promises::check_nothing_left(&self.site.node)?;
            Ok(format!(
                "gone after {}, and all it had put on the node",
                ms(took)
            ))
        };
        self.screen.promise(stopped());
        let kept = || {
            let now = promises::foreign_rules(&self.site.node, self.site.flavour)?;
            ensure!(
                now == foreign,
                "rules of others changed, from\n{foreign}to\n{now}"
            );
            let count = now.lines().filter(|line| line.starts_with("-A ")).count();
            Ok(format!("all {count} rules of others are as they were"))
        };
        self.screen.promise(kept());
        self.requests(Way::KubeProxy);
        Ok(())
    }

    /// Every Service that has an address, over every protocol and family, from everywhere.
    fn requests(&mut self, expected: Way) {
        for request in self.site.requests() {
            self.screen.promise(self.site.carry_out(request, expected));
        }
    }

    fn requests_to_web(&mut self, expected: Way) {
        for request in self.site.requests() {
            if request.is_to_web() {
                self.screen.promise(self.site.carry_out(request, expected));
            }
        }
    }

    /// Waits until `service` has so many rules in each of the agent's chains.
    fn await_rules(&self, service: &str, count: usize, since: Instant) -> Result<Duration> {
        await_ok(PATIENCE, &format!("{service} has {count} rules"), || {
            self.site.check_rules(service, count)
        })?;
        in_time(since.elapsed(), LABEL_PROMISE)
    }
}

fn in_time(took: Duration, promised: Duration) -> Result<Duration> {
    ensure!(
        took <= promised,
        "done, but only after {}; {} is promised",
        ms(took),
        ms(promised)
    );
    Ok(took)
}

/// Times as the screen shows them.
fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

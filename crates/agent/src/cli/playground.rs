//! `edgemesh-agent playground`: the main job on this machine, in private namespaces, with
//! every promise checked.
//!
//! Nodes, pods and kube-proxy's rules are the lab's; the agent, the kernel and the requests
//! are real.

mod screen;
mod site;
mod way;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{Entered, Flavour, Inside, await_ok, await_until, promises};

use screen::Screen;
use site::{ADDED_LABEL, From, Site, TO_ALL, TO_WEB, To, WEB_PORT, check_complete};
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
        self.requests(&TO_ALL, Way::KubeProxy);
        Ok(())
    }

    fn the_agent_starts(&mut self) -> Result<()> {
        self.screen.step("The agent starts beside it");
        let start = Instant::now();
        self.site.agent.start()?;
        let ready = start.elapsed();
        let stands = promises::check_precedence(&self.site.node, self.site.flavour, &[WEB_PORT])
            .and_then(|()| check_complete(&self.site.portal_rules()?));
        self.screen.promise(stands.map(|()| {
            format!(
                "ready after {}: its chains before KUBE-SERVICES, one rule per service port",
                ms(ready)
            )
        }));
        self.requests(&TO_ALL, Way::Agent);
        self.screen.show_nat(&self.site)
    }

    fn a_label_is_added(&mut self) -> Result<()> {
        self.screen
            .step(&format!("default/web gets the label {ADDED_LABEL}"));
        let open = self.site.open_connection();
        let before = self.site.portal_rules()?;
        let start = Instant::now();
        self.site.set_label(true)?;
        let gone = self.await_rules("default/web has no rule", start, |now| {
            let left = now.iter().find(|rule| rule.contains(WEB_PORT));
            ensure!(left.is_none(), "there is still {left:?}");
            Ok(())
        });
        self.screen.change("out of both chains", &before, gone);
        self.requests(&TO_WEB, Way::KubeProxy);
        let goes_on = open.and_then(|mut open| open.goes_on());
        self.screen
            .promise(goes_on.map(|()| "the connection from before goes on".to_owned()));
        Ok(())
    }

    fn the_label_is_removed(&mut self) -> Result<()> {
        self.screen.step("The label is removed");
        let before = self.site.portal_rules()?;
        let start = Instant::now();
        self.site.set_label(false)?;
        let back = self.await_rules("default/web has its rules", start, check_complete);
        self.screen.change("in both chains again", &before, back);
        self.requests(&TO_WEB, Way::Agent);
        Ok(())
    }

    fn everything_is_flushed(&mut self) -> Result<()> {
        self.screen
            .step("Somebody flushes the nat table; kube-proxy puts its own rules back, first");
        self.site.flush_and_restart_kube_proxy()?;
        let start = Instant::now();
        let (node, flavour) = (&self.site.node, self.site.flavour);
        let repaired = await_ok(PATIENCE, "EDGEMESH- stands before KUBE-SERVICES", || {
            promises::check_precedence(node, flavour, &[WEB_PORT])
        })
        .and_then(|()| in_time(start.elapsed(), REPAIR_PROMISE));
        self.screen.promise(repaired.map(|took| {
            format!(
                "its chains are back before KUBE-SERVICES after {}",
                ms(took)
            )
        }));
        self.requests(&TO_ALL, Way::Agent);
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
        self.requests(&TO_ALL, Way::KubeProxy);
        Ok(())
    }

    /// Requests from pod and host.
    fn requests(&mut self, to: &[To], expected: Way) {
        for from in From::ALL {
            let answers: Result<Vec<String>> = to
                .iter()
                .map(|to| {
                    Ok(format!(
                        "{to} {}",
                        self.site.carry_out(from, *to, expected)?
                    ))
                })
                .collect();
            self.screen.promise(match answers {
                Ok(answers) => Ok(format!("{from}  {expected}: {}", answers.join(", "))),
                Err(error) => Err(error.context(format!("{from}"))),
            });
        }
    }

    /// Waits until the agent's rules are as `check` wants them; returns them and how long it took.
    fn await_rules(
        &self,
        what: &str,
        since: Instant,
        check: impl Fn(&BTreeSet<String>) -> Result<()>,
    ) -> Result<(BTreeSet<String>, Duration)> {
        let rules = await_ok(PATIENCE, what, || {
            let now = self.site.portal_rules()?;
            check(&now).map(|()| now)
        })?;
        Ok((rules, in_time(since.elapsed(), LABEL_PROMISE)?))
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

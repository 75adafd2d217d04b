//! What the playground prints.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::ms;
use super::site::{Site, WEB_PORT};

/// Prints, and keeps count of the promises.
#[derive(Debug, Default)]
pub(super) struct Screen {
    steps: usize,
    kept: usize,
    broken: usize,
}

impl Screen {
    /// What there is to see.
    pub(super) fn introduction(&self, site: &Site) {
        let [one, two] = &site.web;
        print(&format!(
            "One node in private namespaces of this machine. Real: the agent, the kernel's rules, \
             the requests.\nStand-in: kube-proxy, by rules like its own (iptables-{}).\n\n  \
             node     edge-1         {}\n  \
             pods     client         {}\n           \
             web-1, web-2   {}, {}\n  \
             Service  default/web    10.96.10.1, fd00:96::1, 80/TCP\n           \
             default/dns    10.96.10.2, 53/UDP\n           \
             monitoring/node-exporter   headless and labelled\n",
            site.flavour,
            site.node.ipv4(),
            site.client.ipv4(),
            one.ipv4(),
            two.ipv4(),
        ));
    }

    /// The next thing that happens.
    pub(super) fn step(&mut self, text: &str) {
        self.steps += 1;
        print(&format!("\n{}. {text}\n", self.steps));
    }

    /// A promise, kept or not.
    pub(super) fn promise(&mut self, outcome: Result<String>) {
        match outcome {
            Ok(text) => {
                self.kept += 1;
                print(&format!("   ok  {text}\n"));
            }
            Err(error) => {
                self.broken += 1;
                print(&format!("   NO  {error:#}\n"));
            }
        }
    }

    /// How the rules of `default/web` changed and how long that took, or why they did not.
    /// Another Service's rule must not have changed.
    pub(super) fn change(
        &mut self,
        how: &str,
        before: &BTreeSet<String>,
        outcome: Result<(BTreeSet<String>, Duration)>,
    ) {
        let (after, took) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return self.promise(Err(error)),
        };
        let gone = before.difference(&after).map(|rule| format!("- {rule}"));
        let new = after.difference(before).map(|rule| format!("+ {rule}"));
        let changes: Vec<String> = gone.chain(new).collect();
        let stray = changes.iter().find(|change| !change.contains(WEB_PORT));
        self.promise(match stray {
            None => Ok(format!("its rules are {how}, {} later", ms(took))),
            Some(stray) => Err(anyhow!("another rule changed as well: {stray}")),
        });
        for change in changes {
            print(&format!("         {change}\n"));
        }
    }

    /// The contract's chains, as iptables shows them.
    pub(super) fn show_nat(&self, site: &Site) -> Result<()> {
        for chain in ["PREROUTING", "OUTPUT", "EDGEMESH-PORTALS-CONTAINER"] {
            print(&format!("\n   # iptables -t nat -nvL {chain}\n"));
            let listed = site.iptables(&format!("-t nat -nvL {chain}"))?;
            for line in listed.lines().filter(|line| !line.is_empty()) {
                print(&format!("   {line}\n"));
            }
        }
        Ok(())
    }

    /// How another terminal gets in.
    pub(super) fn way_in(&self, site: &Site, nsenter: &str) {
        let (flavour, node) = (site.flavour, site.node.name());
        let manifest = site.agent.manifests_folder().join("default.web.yaml");
        print(&format!(
            "\nEverything stays up until Ctrl-C. From another terminal:\n\n  \
             in=\"{nsenter} ip netns exec\"\n  \
             $in {node} iptables-{flavour} -t nat -nvL\n  \
             $in client bash -c 'head -1 </dev/tcp/10.96.10.1/80'\n  \
             $in {node} vi {}\n  \
             $in {node} bash\n",
            manifest.display()
        ));
    }

    /// The last line, and what it means for the exit code.
    pub(super) fn verdict(&self, took: Duration, held: bool) -> ExitCode {
        let all = self.kept + self.broken;
        if self.broken > 0 {
            print(&format!(
                "\n{} of {all} promises were NOT kept.\n",
                self.broken
            ));
            return ExitCode::FAILURE;
        }
        let time = if held {
            String::new()
        } else {
            format!(
                ", in {:.1} s. --hold keeps it up to look around",
                took.as_secs_f64()
            )
        };
        print(&format!("\nAll {all} promises kept{time}.\n"));
        ExitCode::SUCCESS
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what a command is asked for goes to standard output"
)]
fn print(text: &str) {
    print!("{text}");
}

//! What the playground prints, for 80 columns.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::cluster::{Cluster, Member};
use super::crossing::Crossing;
use super::paint::Paint;
use crate::text::Paragraph;

/// Where texts begin beside `ok`.
const INDENT: usize = 7;
/// As many warnings of each agent are shown after a failure.
const MOST_COMPLAINTS: usize = 5;

/// Prints, and keeps count of the promises.
#[derive(Debug)]
pub(super) struct Screen {
    paint: Paint,
    steps: usize,
    kept: usize,
    broken: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            paint: Paint::for_stdout(),
            steps: 0,
            kept: 0,
            broken: 0,
        }
    }

    /// What there is to see.
    pub(super) fn introduction(&self, cluster: &Cluster) {
        let mut page = Paragraph::new(0);
        page.plain(&format!(
            "A cluster on three sites, in private namespaces of this machine. Real: three \
             agents, the kernel's rules and NATs, the requests. Stand-in: kube-proxy, by rules \
             like its own (iptables-{}). Between the sites are cables: no distance.",
            cluster.flavour
        ));
        print(&page.finish());
        print(&map(cluster));
    }

    /// The next thing that happens.
    pub(super) fn step(&mut self, text: &str) {
        self.steps += 1;
        let title = format!("{}. {text}", self.steps);
        print(&format!("\n{}\n", self.paint.strong(&title)));
    }

    /// A promise, kept or not.
    pub(super) fn promise(&mut self, outcome: Result<String>) {
        match outcome {
            Ok(text) => {
                self.kept += 1;
                self.beside("ok", &text, |word| self.paint.good(word));
            }
            Err(error) => {
                self.broken += 1;
                self.beside("NO", &format!("{error:#}"), |word| self.paint.bad(word));
            }
        }
    }

    /// Something that is only shown.
    pub(super) fn remark(&self, text: &str) {
        self.beside("--", text, str::to_owned);
    }

    /// The head of a table of crossings; `first` is what the first time is of.
    pub(super) fn crossings(&self, first: &str) {
        let head = format!("{:50}{first:>8}{:>8}  path", "", "warm");
        print(&format!("{}\n", self.paint.quiet(&head)));
    }

    /// A line of that table, and below it what it does not tell.
    pub(super) fn crossing(&mut self, outcome: Result<Crossing>) {
        match outcome {
            Ok(crossing) => {
                self.kept += 1;
                print(&format!(
                    "   {}  {}\n",
                    self.paint.good("ok"),
                    crossing.line()
                ));
                if let Some(more) = crossing.more() {
                    self.details(&more);
                }
            }
            Err(error) => self.promise(Err(error)),
        }
    }

    /// Lines that show what was told.
    pub(super) fn details(&self, text: &str) {
        for line in text.lines() {
            print(&format!(
                "{:INDENT$}{}\n",
                "",
                self.paint.quiet(line.trim_end())
            ));
        }
    }

    /// How another terminal gets in.
    pub(super) fn way_in(&self, cluster: &Cluster, nsenter: &str) {
        let edge = &cluster.edge1;
        let (flavour, node) = (cluster.flavour, edge.name());
        let manifest = edge.agent.manifests_folder().join("default.camera.yaml");
        print(&format!(
            "\nEverything stays up until Ctrl-C. From another terminal:\n\n  \
             in=\"{nsenter} ip netns exec\"\n  \
             $in {node} {} status\n  \
             $in {node} iptables-{flavour} -t nat -nvL\n  \
             $in {} bash -c 'head -1 </dev/tcp/10.96.10.1/80'\n  \
             $in {node} vi {}\n  \
             $in {node} bash\n",
            std::env::current_exe()
                .unwrap_or_else(|_| "edgemesh-agent".into())
                .display(),
            edge.client.name(),
            manifest.display()
        ));
    }

    /// What the agents complained of, if a promise was not kept.
    pub(super) fn trouble(&self, cluster: &Cluster) {
        if self.broken == 0 {
            return;
        }
        for member in cluster.members() {
            let complaints = member.complaints();
            let last = &complaints[complaints.len().saturating_sub(MOST_COMPLAINTS)..];
            for line in last {
                print(&format!("\n{}: {line}\n", member.name()));
            }
        }
    }

    /// The last line, and what it means for the exit code.
    pub(super) fn verdict(&self, took: Duration, held: bool) -> ExitCode {
        let all = self.kept + self.broken;
        if self.broken > 0 {
            let text = format!("{} of {all} promises were NOT kept.", self.broken);
            print(&format!("\n{}\n", self.paint.bad(&text)));
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
        let text = format!("All {all} promises kept{time}.");
        print(&format!("\n{}\n", self.paint.good(&text)));
        ExitCode::SUCCESS
    }

    /// `word`, painted, and beside it `text`, wrapped.
    fn beside(&self, word: &str, text: &str, painted: impl Fn(&str) -> String) {
        let mut page = Paragraph::new(INDENT);
        page.line(&format!("   {word}"), text);
        print(&page.finish().replacen(word, &painted(word), 1));
    }
}

/// The sites, from the cloud down to the edge.
fn map(cluster: &Cluster) -> String {
    let Cluster {
        cloud,
        edge1,
        edge2,
        ..
    } = cluster;
    let service = |member: &Member| {
        let address = member
            .service
            .cluster_ips
            .first()
            .map_or("", String::as_str);
        format!("{}  {address}", member.service_name())
    };
    let nat = |member: &Member| format!("NAT {}", member.site.uplink().public_address());
    let node = |member: &Member| format!("{}  {}", member.name(), member.node.ipv4());
    let cloudy = |text: String| format!("{:18}{text}\n", "");
    let edgy = |left: String, right: String| format!("   {left:<38}{right}\n");
    [
        "\n".to_owned(),
        cloudy(format!("{}, the relay node", node(cloud))),
        cloudy(service(cloud)),
        format!("{:28}│\n", ""),
        format!("{:9}┌─────────── the internet ────────────┐\n", ""),
        edgy(nat(edge1), nat(edge2)),
        format!("{:9}│{:37}│\n", "", ""),
        edgy(node(edge1), node(edge2)),
        edgy(service(edge1), service(edge2)),
    ]
    .concat()
}

#[expect(
    clippy::print_stdout,
    reason = "what a command is asked for goes to standard output"
)]
fn print(text: &str) {
    print!("{text}");
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn one_promise_that_is_not_kept_is_a_failure() {
        let mut screen = Screen::new();
        screen.promise(Ok("kept".to_owned()));
        let verdict = |screen: &Screen| format!("{:?}", screen.verdict(Duration::ZERO, false));
        assert_eq!(verdict(&screen), format!("{:?}", ExitCode::SUCCESS));
        screen.promise(Err(anyhow!("broken")));
        assert_eq!(verdict(&screen), format!("{:?}", ExitCode::FAILURE));
    }
}

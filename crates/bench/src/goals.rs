//! What the agent is meant to reach, and whether it did. Nearly all goals are ratios within
//! one table; what EdgeMesh (Go, 1.17) did was measured once on the same kind of stage and
//! stands here as its ratio to plain TCP.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::results::Results;
use crate::spread::shortly;
use crate::table::markdown;

/// EdgeMesh's new connections through its tunnel, as a share of plain TCP's: 0.07 to 0.13.
const EDGEMESH_CONNECTIONS: f64 = 0.1;
/// The median of the time each took, as a multiple of plain TCP's: 5.7 ms to 0.61 ms.
const EDGEMESH_CONNECTION_P50: f64 = 9.3;
/// EdgeMesh's throughput between edges through its relay, as a share of plain TCP's.
const EDGEMESH_RELAYED: f64 = 0.029;

/// A figure that a goal is about.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    what: String,
    value: Option<f64>,
    limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// How a goal came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All its figures are within their limits.
    Met,
    /// One is not.
    Missed,
    /// One was not measured.
    Unknown,
}

/// A goal with what was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// A short name, for the notes on why it was missed.
    pub name: &'static str,
    /// What it is about.
    pub work: &'static str,
    figures: Vec<Figure>,
}

impl Goal {
    /// How it came out.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let outcomes = self.figures.iter().map(Figure::outcome);
        outcomes.max().unwrap_or(Outcome::Unknown)
    }

    fn row(&self, notes: &BTreeMap<String, String>) -> Vec<String> {
        let listed = |text: fn(&Figure) -> String| -> String {
            let all: Vec<String> = self.figures.iter().map(text).collect();
            all.join("<br>")
        };
        let outcome = match self.outcome() {
            Outcome::Met => "met",
            Outcome::Missed => "**missed**",
            Outcome::Unknown => "not measured",
        };
        let note = match self.outcome() {
            Outcome::Missed => notes.get(self.name).cloned().unwrap_or_default(),
            Outcome::Met | Outcome::Unknown => String::new(),
        };
        vec![
            self.work.to_owned(),
            listed(Figure::goal),
            listed(Figure::measured),
            outcome.to_owned(),
            note,
        ]
    }
}

impl Figure {
    fn outcome(&self) -> Outcome {
        match (self.value, self.limit) {
            (None, _) => Outcome::Unknown,
            (Some(value), Limit::AtLeast(limit)) if value >= limit => Outcome::Met,
            (Some(value), Limit::AtMost(limit)) if value <= limit => Outcome::Met,
            (Some(_), _) => Outcome::Missed,
        }
    }

    fn goal(&self) -> String {
        match self.limit {
            Limit::AtLeast(limit) => format!("{} ≥ {}", self.what, shortly(limit)),
            Limit::AtMost(limit) => format!("{} ≤ {}", self.what, shortly(limit)),
        }
    }

    fn measured(&self) -> String {
        self.value.map_or_else(|| "-".to_owned(), shortly)
    }
}

/// All goals, with what these results say of them.
#[must_use]
pub fn all(results: &Results) -> Vec<Goal> {
    let told = Told(results);
    vec![
        told.kernel_path(
            "kernel-iptables",
            "kernel path beside kube-proxy's rules, iptables",
            "iptables",
            0.98,
        ),
        told.kernel_path(
            "kernel-nftables",
            "kernel path beside kube-proxy's rules, nftables",
            "nftables",
            1.0,
        ),
        told.user_throughput(),
        told.user_connections(),
        told.tunnel_throughput(
            "tunnel-quic",
            "tunnel, edge to cloud by QUIC alone, beside plain TCP through the same NAT",
            "agent, to the cloud",
            [0.21, 3.5],
        ),
        told.tunnel_throughput(
            "tunnel-tcp",
            "the same with the TCP carrier",
            "agent, to the cloud, TCP carrier",
            [0.4, 1.8],
        ),
        told.tunnel_connections(),
        told.long_path(),
        told.relayed(),
        told.many_services(
            "add-one",
            "one Service added at 10,000",
            "services-10000",
            "one added, ms",
            50.0,
        ),
        told.many_services(
            "all-in",
            "first full sync of 10,000 Services",
            "services-10000",
            "all in, s",
            2.0,
        ),
        told.many_services(
            "idle-cpu",
            "idle CPU at 10,000 Services",
            "services-10000",
            "idle CPU, ms/s",
            5.0,
        ),
        told.many_services(
            "idle-rss",
            "idle RSS at 1,000 Services",
            "services-1000",
            "RSS, MiB",
            25.0,
        ),
    ]
}

/// The goals as a table. `notes` tell, by name, why one was missed and what was tried.
#[must_use]
pub fn table(results: &Results, notes: &BTreeMap<String, String>) -> String {
    let head = ["work", "goal", "measured", "", "why, and what was tried"];
    let rows: Vec<Vec<String>> = all(results).iter().map(|goal| goal.row(notes)).collect();
    markdown(&head.map(str::to_owned), &rows)
}

/// The goals as lines for a terminal.
#[must_use]
pub fn lines(results: &Results) -> String {
    let mut text = String::new();
    for goal in all(results) {
        let outcome = match goal.outcome() {
            Outcome::Met => "met",
            Outcome::Missed => "MISSED",
            Outcome::Unknown => "not measured",
        };
        let _ = writeln!(text, "{outcome:13} {}", goal.work);
        for figure in &goal.figures {
            let _ = writeln!(text, "{:13}   {}: {}", "", figure.goal(), figure.measured());
        }
    }
    text
}

/// Reads notes: a line `name: text` each; other lines are for people.
#[must_use]
pub fn parse_notes(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(name, _)| !name.contains(' '))
        .map(|(name, note)| (name.to_owned(), note.trim().to_owned()))
        .collect()
}

struct Told<'r>(&'r Results);

impl Told<'_> {
    fn ratio(&self, table: &str, who: &str, to: &str, measure: &str) -> Option<f64> {
        self.0.comparison(table)?.ratio(who, to, measure)
    }

    fn median(&self, table: &str, who: &str, measure: &str) -> Option<f64> {
        let spread = self.0.comparison(table)?.spread(who, measure)?;
        Some(spread.median)
    }

    fn kernel_path(
        &self,
        name: &'static str,
        work: &'static str,
        backend: &str,
        least: f64,
    ) -> Goal {
        let who = format!("agent, kernel path, {backend}");
        let to = format!("kube-proxy's rules, {backend}");
        let ratio = |table, measure| self.ratio(table, &who, &to, measure);
        Goal {
            name,
            work,
            figures: vec![
                at_least("throughput, ratio", ratio("throughput-1", "Gbit/s"), least),
                at_least(
                    "connections/s, ratio",
                    ratio("connections", "connections/s"),
                    least,
                ),
                at_most("p99, ratio", ratio("connections", "p99, ms"), 1.0 / least),
            ],
        }
    }

    fn user_throughput(&self) -> Goal {
        let ratio =
            |measure| self.best_user("throughput-1", "HAProxy, forced splice", "Gbit/s", measure);
        Goal {
            name: "user-throughput",
            work: "user path beside HAProxy with forced splice, one stream",
            figures: vec![
                at_least("throughput, ratio", ratio("Gbit/s"), 1.2),
                at_most("CPU s/GB, ratio", ratio("CPU s/GB"), 0.6),
            ],
        }
    }

    fn user_connections(&self) -> Goal {
        let ratio = |measure| self.best_user("connections", "HAProxy", "connections/s", measure);
        Goal {
            name: "user-connections",
            work: "user path beside HAProxy, new connections",
            figures: vec![
                at_least("connections/s, ratio", ratio("connections/s"), 1.0),
                at_most("p99, ratio", ratio("p99, ms"), 1.0),
            ],
        }
    }

    /// A ratio of the user path by the backend that is better in `by`: the path is the same.
    fn best_user(&self, table: &str, to: &str, by: &str, measure: &str) -> Option<f64> {
        let backends = ["iptables", "nftables"].map(|one| format!("agent, user path, {one}"));
        let best = backends
            .into_iter()
            .filter_map(|who| Some((self.ratio(table, &who, to, by)?, who)))
            .max_by(|(one, _), (other, _)| one.total_cmp(other))?;
        self.ratio(table, &best.1, to, measure)
    }

    /// Throughput as a share of plain TCP's, at a cost in CPU s/GB of both agents.
    fn tunnel_throughput(
        &self,
        name: &'static str,
        work: &'static str,
        who: &str,
        [share, cost]: [f64; 2],
    ) -> Goal {
        let table = "tunnel-throughput-1";
        Goal {
            name,
            work,
            figures: vec![
                at_least(
                    "throughput, ratio",
                    self.ratio(table, who, PLAIN, "Mbit/s"),
                    share,
                ),
                at_most(
                    "CPU s/GB of both agents",
                    self.median(table, who, "CPU s/GB"),
                    cost,
                ),
            ],
        }
    }

    fn tunnel_connections(&self) -> Goal {
        let ratio =
            |measure| self.ratio("tunnel-connections", "agent, to the cloud", PLAIN, measure);
        let rate = ratio("connections/s").map(|ratio| ratio / EDGEMESH_CONNECTIONS);
        let median = ratio("p50, ms").map(|ratio| ratio / EDGEMESH_CONNECTION_P50);
        Goal {
            name: "tunnel-connections",
            work: "tunnel, new connections, beside EdgeMesh's (both by their ratio to plain TCP)",
            figures: vec![
                at_least("connections/s, ratio", rate, 5.0),
                at_most("p50, ratio", median, 0.25),
            ],
        }
    }

    fn long_path(&self) -> Goal {
        let ratio = self.ratio("30ms-throughput-1", "agent, to the cloud", PLAIN, "Mbit/s");
        Goal {
            name: "long-path",
            work: "tunnel over 30 ms, 0.5 % loss, 200 Mbit/s, one stream, beside plain TCP with bbr",
            figures: vec![at_least("throughput, ratio", ratio, 0.8)],
        }
    }

    fn relayed(&self) -> Goal {
        let who = "agent, edge to edge, relayed";
        let ratio = self.ratio("tunnel-throughput-1", who, PLAIN, "Mbit/s");
        Goal {
            name: "relayed",
            work: "relayed, edge to edge, beside EdgeMesh's (both by their ratio to plain TCP)",
            figures: vec![at_least(
                "throughput, ratio",
                ratio.map(|ratio| ratio / EDGEMESH_RELAYED),
                2.0,
            )],
        }
    }

    fn many_services(
        &self,
        name: &'static str,
        work: &'static str,
        table: &str,
        measure: &str,
        most: f64,
    ) -> Goal {
        let figure = |backend: &str| {
            let value = self.median(table, &format!("agent, {backend}"), measure);
            at_most(&format!("{measure}, {backend}"), value, most)
        };
        Goal {
            name,
            work,
            figures: vec![figure("iptables"), figure("nftables")],
        }
    }
}

const PLAIN: &str = "plain TCP through the NAT";

fn at_least(what: &str, value: Option<f64>, limit: f64) -> Figure {
    Figure {
        what: what.to_owned(),
        value,
        limit: Limit::AtLeast(limit),
    }
}

fn at_most(what: &str, value: Option<f64>, limit: f64) -> Figure {
    Figure {
        what: what.to_owned(),
        value,
        limit: Limit::AtMost(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Circumstances;
    use crate::results::{Better, Comparison, PartResults};

    fn results(haproxy: [f64; 2], iptables: [f64; 2], nftables: [f64; 2]) -> Results {
        let measures = [("Gbit/s", Better::High), ("CPU s/GB", Better::Low)];
        let mut comparison = Comparison::new("throughput-1", "T", &measures);
        let mut add = |who, [rate, cost]: [f64; 2]| comparison.add(who, &[Some(rate), Some(cost)]);
        add("HAProxy, forced splice", haproxy);
        add("agent, user path, iptables", iptables);
        add("agent, user path, nftables", nftables);
        let part = PartResults {
            circumstances: Circumstances::default(),
            comparisons: vec![comparison],
            remarks: Vec::new(),
        };
        let mut results = Results::default();
        results.parts.insert("one-node".to_owned(), part);
        results
    }

    fn goal(results: &Results, name: &str) -> Goal {
        let found = all(results).into_iter().find(|goal| goal.name == name);
        found.unwrap()
    }

    #[test]
    fn a_goal_is_met_when_all_its_figures_are_of_one_contender_that_is_good_enough() {
        let met = results([10.0, 1.0], [9.0, 0.1], [12.5, 0.5]);
        assert_eq!(goal(&met, "user-throughput").outcome(), Outcome::Met);
        let costly = results([10.0, 1.0], [9.0, 0.1], [12.5, 0.7]);
        assert_eq!(goal(&costly, "user-throughput").outcome(), Outcome::Missed);
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let nothing = Results::default();
        assert!(
            all(&nothing)
                .iter()
                .all(|goal| goal.outcome() == Outcome::Unknown)
        );
        assert!(table(&nothing, &BTreeMap::new()).contains("| not measured |"));
        assert!(!lines(&nothing).contains("MISSED"));
    }

    #[test]
    fn a_note_tells_why_one_was_missed() {
        let slow = results([10.0, 1.0], [9.0, 0.1], [8.0, 0.5]);
        let notes = parse_notes("# Notes\n\nuser-throughput: pipes of 64 KiB.\nall-in: no.\n");
        assert_eq!(notes.len(), 2);
        let text = table(&slow, &notes);
        assert!(text.contains("| **missed** | pipes of 64 KiB. |"), "{text}");
        assert!(!text.contains("no."));
    }

    #[test]
    fn goals_have_names_of_their_own() {
        let mut names: Vec<_> = all(&Results::default())
            .iter()
            .map(|goal| goal.name)
            .collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

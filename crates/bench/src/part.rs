//! What is measured. Each part has a lab of its own.

mod instructions;
mod memory;
mod one_node;
mod scale;
mod services;
mod tunnel;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::Lab;

use crate::results::Comparison;

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// Throughput, connections, requests and datagrams between two pods of one node.
    OneNode,
    /// Memory, with idle connections and without.
    Memory,
    /// 100 to 10,000 Services.
    Services,
    /// The largest number of Services while endpoints come and go.
    Scale,
    /// From an edge node to the cloud, and to another edge by a relay.
    Tunnel,
    /// From an edge node to another through holes that were punched.
    TunnelPunched,
    /// The same as `tunnel`, over long paths that lose packets.
    TunnelFar,
    /// Instructions for fixed work, by valgrind; not among those that are measured unasked.
    Instructions,
}

/// How much is to be measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// The agent's program.
    pub agent: PathBuf,
    /// Another agent, to compare instructions with.
    pub base: Option<PathBuf>,
    /// How often every contender has its turn.
    pub rounds: usize,
    /// How long each measurement of a rate goes on.
    pub window: Duration,
    /// Only contenders whose name contains one of these; all where it is empty. The first
    /// line, which others are compared with, always takes part.
    pub contenders: Vec<String>,
    /// Only comparisons whose name contains one of these; all where it is empty.
    pub works: Vec<String>,
    /// Numbers of Services.
    pub services: Vec<usize>,
    /// How many idle connections, as far as the file limit allows.
    pub connections: usize,
}

impl Effort {
    /// Whether a contender takes part.
    #[must_use]
    pub fn takes(&self, contender: &str) -> bool {
        chosen(&self.contenders, contender)
    }

    /// Whether a comparison is made.
    #[must_use]
    pub fn makes(&self, work: &str) -> bool {
        chosen(&self.works, work)
    }
}

fn chosen(words: &[String], name: &str) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
}

/// What a part found, as it grows.
#[derive(Debug, Default)]
pub struct Found {
    /// The tables.
    pub comparisons: Vec<Comparison>,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

impl Found {
    /// Notes what was left out or went wrong, and says so at once.
    pub fn remark(&mut self, remark: impl Into<String>) {
        let remark = remark.into();
        say(&format!("  ! {remark}"));
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Has a measurement in a table, or a remark where it failed: the others go on.
    pub fn note(
        &mut self,
        comparison: &mut Comparison,
        contender: &str,
        figures: Result<Vec<Option<f64>>>,
    ) {
        match figures {
            Ok(figures) => {
                let first = figures.first().copied().flatten().unwrap_or(f64::NAN);
                let measure = comparison.measures.first();
                let unit = measure.map_or("", |measure| measure.name.as_str());
                say(&format!(
                    "  {:22} {contender:32} {} {unit}",
                    comparison.name,
                    crate::spread::shortly(first)
                ));
                comparison.add(contender, &figures);
            }
            Err(error) => {
                let work = comparison.name.clone();
                self.remark(format!(
                    "{work}: {contender} failed: {}",
                    in_one_line(&error)
                ));
            }
        }
    }

    /// Takes a table in, unless nothing is in it.
    pub fn keep(&mut self, comparison: Comparison) {
        if !comparison.lines.is_empty() {
            self.comparisons.push(comparison);
        }
    }
}

/// An error with its causes; of a longer text, such as the end of a log, the first line and
/// the last one.
#[must_use]
pub fn in_one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} … {}", last.trim()),
        None => first.to_owned(),
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OneNode => "one-node",
            Self::Memory => "memory",
            Self::Services => "services",
            Self::Scale => "scale",
            Self::Tunnel => "tunnel",
            Self::TunnelPunched => "tunnel-punched",
            Self::TunnelFar => "tunnel-far",
            Self::Instructions => "instructions",
        })
    }
}

impl Part {
    /// All, in the order of the report.
    pub const ALL: [Self; 8] = [
        Self::OneNode,
        Self::Memory,
        Self::Services,
        Self::Scale,
        Self::Tunnel,
        Self::TunnelPunched,
        Self::TunnelFar,
        Self::Instructions,
    ];

    /// Whether it is measured unasked.
    #[must_use]
    pub fn is_usual(self) -> bool {
        self != Self::Instructions
    }

    /// The heading of its section.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::OneNode => "Between two pods of one node",
            Self::Memory => "Memory",
            Self::Services => "Many Services",
            Self::Scale => "A large cluster in motion",
            Self::Tunnel => "Between sites",
            Self::TunnelPunched => "Between sites, by punched holes",
            Self::TunnelFar => "Between sites that are far from each other",
            Self::Instructions => "Instructions",
        }
    }

    /// Measures.
    ///
    /// # Errors
    ///
    /// When there is nothing to compare with. What goes wrong with one contender is a remark.
    pub fn measure(self, lab: &Lab, effort: &Effort) -> Result<Found> {
        let mut found = Found::default();
        match self {
            Self::OneNode => one_node::measure(lab, effort, &mut found)?,
            Self::Memory => memory::measure(lab, effort, &mut found)?,
            Self::Services => services::measure(lab, effort, &mut found)?,
            Self::Scale => scale::measure(lab, effort, &mut found)?,
            Self::Tunnel => tunnel::measure(lab, effort, &mut found)?,
            Self::TunnelPunched => tunnel::measure_punched(lab, effort, &mut found)?,
            Self::TunnelFar => tunnel::measure_far(lab, effort, &mut found)?,
            Self::Instructions => instructions::measure(lab, effort, &mut found)?,
        }
        Ok(found)
    }
}

/// Says how it goes.
#[expect(
    clippy::print_stdout,
    reason = "whoever waits for minutes wants to see what goes on"
)]
pub fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Better;

    #[test]
    fn nothing_chosen_is_everything() {
        assert!(chosen(&[], "direct"));
        let words = ["haproxy".to_owned(), "agent".to_owned()];
        assert!(chosen(&words, "agent, user path"));
        assert!(!chosen(&words, "direct"));
    }

    #[test]
    fn a_failure_is_a_remark_and_no_figure() {
        let mut found = Found::default();
        let mut table = Comparison::new("t", "T", &[("s", Better::Low)]);
        let failure = || Err(anyhow::anyhow!("refused\nand much more").context("no answer"));
        found.note(&mut table, "nginx", failure());
        found.note(&mut table, "nginx", failure());
        let expected = "t: nginx failed: no answer: refused … and much more";
        assert_eq!(found.remarks, [expected]);
        found.keep(table.clone());
        assert!(found.comparisons.is_empty());
        found.note(&mut table, "direct", Ok(vec![Some(1.0)]));
        found.keep(table);
        assert_eq!(found.comparisons.len(), 1);
    }
}

//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::part::{Effort, Part};

/// The agent beside direct connections, kube-proxy's rules and other proxies.
///
/// `crates/bench/run` builds what is needed and runs all parts; `make bench` does that.
#[derive(Debug, Parser)]
#[command(name = "edgemesh-bench")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measures one part, in a lab of its own, and keeps what it finds in a file.
    Measure(Measure),
    /// Makes tables and plots of what was kept.
    Report(Report),
    /// Prints what the agent is meant to reach, and whether it did.
    Goals(Goals),
    /// Lists the parts that are measured unasked.
    Parts,
}

/// Measures one part.
#[derive(Debug, Parser)]
pub struct Measure {
    /// Which part.
    pub part: Part,
    /// The agent's program.
    #[arg(long)]
    pub agent: PathBuf,
    /// Another agent, to compare instructions with.
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// Where results are kept; those of other parts stay.
    #[arg(long)]
    pub results: PathBuf,
    /// How often every contender has its turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// How long each measurement of a rate goes on, in seconds.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Only contenders whose name contains one of these words.
    #[arg(long, value_delimiter = ',')]
    pub contenders: Vec<String>,
    /// Only comparisons whose name contains one of these words.
    #[arg(long, value_delimiter = ',')]
    pub works: Vec<String>,
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    pub services: Vec<usize>,
    /// Idle connections to measure memory with, as far as the file limit allows.
    #[arg(long, default_value_t = 10_000)]
    pub connections: usize,
}

/// Makes tables and plots.
#[derive(Debug, Parser)]
pub struct Report {
    /// Where results are kept.
    #[arg(long)]
    pub results: PathBuf,
    /// Where plots go.
    #[arg(long)]
    pub plots: PathBuf,
    /// The page whose generated section is to be written anew; it is printed without.
    #[arg(long)]
    pub page: Option<PathBuf>,
}

/// Prints the goals.
#[derive(Debug, Parser)]
pub struct Goals {
    /// Where results are kept.
    #[arg(long)]
    pub results: PathBuf,
}

impl Measure {
    /// How much is to be measured.
    #[must_use]
    pub fn effort(&self) -> Effort {
        Effort {
            agent: self.agent.clone(),
            base: self.base.clone(),
            rounds: self.rounds.max(1),
            window: Duration::from_secs_f64(self.seconds.clamp(0.05, 600.0)),
            contenders: self.contenders.clone(),
            works: self.works.clone(),
            services: self.services.clone(),
            connections: self.connections,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_measured_with_what_the_command_line_says() {
        let line = "edgemesh-bench measure one-node --agent a --results r --rounds 0 \
                    --seconds 0.2 --contenders HAProxy,agent --services 10,20";
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Measure(measure) = arguments.command else {
            panic!("{arguments:?}");
        };
        let effort = measure.effort();
        assert_eq!(measure.part, Part::OneNode);
        assert_eq!(effort.rounds, 1, "less than one round has no median");
        assert_eq!(effort.window, Duration::from_millis(200));
        assert_eq!(effort.services, [10, 20]);
        assert!(effort.takes("agent, user path, nftables") && !effort.takes("nginx stream"));
    }

    #[test]
    fn every_part_is_known_by_the_name_it_tells() {
        use clap::ValueEnum;
        assert_eq!(Part::value_variants(), Part::ALL);
        for part in Part::ALL {
            assert_eq!(Part::from_str(&part.to_string(), false), Ok(part));
        }
    }
}

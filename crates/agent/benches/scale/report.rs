//! What was measured, as the rest of the suite has it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use edgemesh_bench::machine::Circumstances;
use edgemesh_bench::part::say;
use edgemesh_bench::report::KUBERNETES;
use edgemesh_bench::results::{Better, Comparison, PartResults, Results};
use edgemesh_bench::table;
use edgemesh_lab::Flavour;

use crate::contender::Contender;
use crate::measured::Measured;

/// A column: its title and its figures of one run, in the title's unit.
type Column = (&'static str, fn(&Measured) -> Vec<f64>);

const COLUMNS: [Column; 6] = [
    ("all in, s", |run| vec![run.all_in.as_secs_f64()]),
    ("CPU until then, s", |run| {
        vec![run.cpu_until_all_in.as_secs_f64()]
    }),
    ("one added, ms", |run| {
        run.added.iter().copied().map(milliseconds).collect()
    }),
    ("idle CPU, ms/s", |run| vec![milliseconds(run.idle_cpu)]),
    ("RSS, MiB", |run| vec![mib(run.memory.resident)]),
    ("own (RssAnon), MiB", |run| vec![mib(run.memory.own)]),
];

/// The tables of all sizes.
#[derive(Debug)]
pub(crate) struct Report {
    found: PartResults,
}

/// A table of one size.
#[derive(Debug)]
pub(crate) struct OfSize(Comparison);

impl Report {
    pub(crate) fn new(rounds: usize, agent: &Path, in_user_namespace: bool) -> Self {
        let mut circumstances = Circumstances::now(rounds, 0, agent);
        circumstances.in_user_namespace = in_user_namespace;
        Self {
            found: PartResults {
                circumstances,
                comparisons: Vec::new(),
                remarks: Vec::new(),
            },
        }
    }

    /// Notes what took part, besides what every part names.
    pub(crate) fn version(&mut self, version: String) {
        say(&version);
        self.found.circumstances.versions.push(version);
    }

    /// Notes what was left out, and why.
    pub(crate) fn remark(&mut self, remark: String) {
        say(&remark);
        if !self.found.remarks.contains(&remark) {
            self.found.remarks.push(remark);
        }
    }

    /// Prints a table and keeps it.
    pub(crate) fn keep(&mut self, table: OfSize) {
        let comparison = table.0;
        say(&format!(
            "\n{}\n\n{}",
            comparison.title,
            table::of_comparison(&comparison)
        ));
        self.found.comparisons.push(comparison);
    }

    /// Writes all tables to the file of the suite's results.
    pub(crate) fn write(mut self, results: &Path) -> Result<()> {
        self.found.circumstances.end();
        let mut all = Results::read(results)?;
        all.parts.insert(KUBERNETES.0.to_owned(), self.found);
        all.write(results)
    }
}

impl OfSize {
    pub(crate) fn new(flavour: Flavour, count: usize) -> Self {
        let title = format!(
            "{count} Services, {} endpoints, iptables-{flavour}",
            2 * count
        );
        let name = format!("kubernetes-{flavour}-{count}");
        let measures = COLUMNS.map(|(title, _)| (title, Better::Low));
        Self(Comparison::new(&name, &title, &measures))
    }

    pub(crate) fn add(&mut self, contender: Contender, measured: &Measured) {
        let figures = COLUMNS.map(|(_, figures)| figures(measured));
        self.0.add_all(&contender.to_string(), &figures);
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

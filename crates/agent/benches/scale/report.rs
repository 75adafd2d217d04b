//! Tables in Markdown.

use std::collections::BTreeMap;
use std::path::Path;

use edgemesh_lab::Flavour;

use crate::contender::Contender;
use crate::process_figures::Memory;
use crate::run::Measured;

/// What was measured at one number of Services.
#[derive(Debug)]
pub(crate) struct Report {
    flavour: Flavour,
    count: usize,
    contenders: Vec<Contender>,
    runs: BTreeMap<Contender, Vec<Measured>>,
}

/// A column: its title and its figures of one run, in the title's unit.
type Column = (&'static str, fn(&Measured) -> Vec<f64>);

const COLUMNS: [Column; 7] = [
    ("all in, s", |run| vec![run.all_in.as_secs_f64()]),
    ("CPU until then, s", |run| {
        vec![run.cpu_until_all_in.as_secs_f64()]
    }),
    ("one added, ms", |run| {
        run.added
            .iter()
            .map(|took| took.as_secs_f64() * 1000.0)
            .collect()
    }),
    ("idle CPU, ms/s", |run| {
        vec![run.idle_cpu.as_secs_f64() * 1000.0]
    }),
    ("RSS, MiB", |run| mib(run, |memory| memory.resident)),
    ("own (RssAnon), MiB", |run| mib(run, |memory| memory.own)),
    ("peak RSS, MiB", |run| mib(run, |memory| memory.peak)),
];

impl Report {
    pub(crate) fn new(flavour: Flavour, count: usize, contenders: &[Contender]) -> Self {
        Self {
            flavour,
            count,
            contenders: contenders.to_vec(),
            runs: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, contender: Contender, measured: Measured) {
        self.runs.entry(contender).or_default().push(measured);
    }

    /// Prints all runs, and what the agent needs of what kube-proxy does.
    pub(crate) fn print(&self) {
        say(&format!(
            "\n### {} Services, {} endpoints, iptables-{}\n",
            self.count,
            2 * self.count,
            self.flavour
        ));
        let titles = COLUMNS.map(|(title, _)| title).join(" | ");
        say(&format!("| | {titles} |"));
        say(&format!("|---|{}", "---|".repeat(COLUMNS.len())));
        for contender in &self.contenders {
            let cells = COLUMNS.map(|(_, figures)| self.figures(*contender, figures).cell());
            say(&format!("| {contender} | {} |", cells.join(" | ")));
        }
        for contender in [Contender::AgentOfManifests, Contender::AgentOfApi] {
            let both = [contender, Contender::KubeProxy];
            if both.iter().all(|one| self.contenders.contains(one)) {
                let cells = COLUMNS.map(|(_, figures)| self.ratio(both, figures));
                say(&format!("| ratio of {contender} | {} |", cells.join(" | ")));
            }
        }
    }

    fn ratio(&self, [one, other]: [Contender; 2], figures: fn(&Measured) -> Vec<f64>) -> String {
        let (one, other) = (self.figures(one, figures), self.figures(other, figures));
        // Below a clock tick in the whole time there is nothing to compare.
        if other.median() > 0.0 {
            format!("{:.2}", one.median() / other.median())
        } else {
            "-".to_owned()
        }
    }

    fn figures(&self, contender: Contender, figures: fn(&Measured) -> Vec<f64>) -> Figures {
        let runs = self.runs.get(&contender).into_iter().flatten();
        let mut all: Vec<f64> = runs.flat_map(figures).collect();
        all.sort_by(f64::total_cmp);
        Figures(all)
    }
}

/// Sorted figures.
struct Figures(Vec<f64>);

impl Figures {
    fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.get(middle) {
            Some(upper) if self.0.len().is_multiple_of(2) => {
                f64::midpoint(self.0[middle - 1], *upper)
            }
            Some(odd) => *odd,
            None => 0.0,
        }
    }

    fn cell(&self) -> String {
        let (Some(least), Some(greatest)) = (self.0.first(), self.0.last()) else {
            return "-".to_owned();
        };
        let digits = if *greatest < 20.0 { 2 } else { 0 };
        let median = self.median();
        format!("{median:.digits$} ({least:.digits$}..{greatest:.digits$})")
    }
}

fn mib(run: &Measured, part: impl Fn(&Memory) -> u64) -> Vec<f64> {
    vec![part(&run.memory) as f64 / 1024.0]
}

/// Prints what everybody who reads the figures wants to know of the machine.
pub(crate) fn say_where_this_runs(in_user_namespace: bool, agent: &Path) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let size = std::fs::metadata(agent).map_or(0, |metadata| metadata.len());
    say(&format!(
        "Linux {}, {cores} cores, load {}; {}; agent of {:.1} MiB.\n\
         A figure is the median (least..greatest) of all runs.",
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
        if in_user_namespace {
            "in a user namespace"
        } else {
            "as root"
        },
        size as f64 / 1_048_576.0,
    ));
}

/// Prints a line of the report.
#[expect(
    clippy::print_stdout,
    reason = "figures are what this program is run for"
)]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

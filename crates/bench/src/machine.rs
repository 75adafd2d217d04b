//! When and on what figures were taken: whoever reads them wants to know.

use std::fs;
use std::path::Path;

use edgemesh_lab::Program;
use serde::{Deserialize, Serialize};

/// The circumstances of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// The day, in UTC.
    pub date: String,
    /// `Linux 6.18.5`.
    pub kernel: String,
    /// What the processor calls itself.
    pub processor: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Load averages (1 minute) when the run began and ended; the run itself is in the latter.
    pub load: [String; 2],
    /// How often every contender had its turn.
    pub rounds: usize,
    /// How long each measurement of a rate took, in milliseconds; 0 where there was none.
    pub milliseconds: u64,
    /// The programs that took part, as they tell themselves.
    pub versions: Vec<String>,
    /// Whether the lab was in a user namespace.
    pub in_user_namespace: bool,
}

impl Circumstances {
    /// Those of now.
    #[must_use]
    pub fn now(rounds: usize, milliseconds: u64, agent: &Path) -> Self {
        let date = said(&Program::new("date").args(["-u", "+%Y-%m-%d"]));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            date: date.unwrap_or_default(),
            kernel: format!("Linux {}", kernel.trim()),
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: [load(), String::new()],
            rounds,
            milliseconds,
            versions: versions(agent),
            in_user_namespace: false,
        }
    }

    /// Notes the load at the end.
    pub fn end(&mut self) {
        self.load[1] = load();
    }

    /// In one line.
    #[must_use]
    pub fn line(&self) -> String {
        let [before, after] = &self.load;
        format!(
            "{}, {}, {} x {}, load {before} before and {after} after{}; {} rounds{}; {}",
            self.date,
            self.kernel,
            self.cores,
            self.processor,
            if self.in_user_namespace {
                ", in a user namespace"
            } else {
                ""
            },
            self.rounds,
            match self.milliseconds {
                0 => String::new(),
                some => format!(" of {:.1} s", some as f64 / 1e3),
            },
            self.versions.join(", "),
        )
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The first `model name` of `/proc/cpuinfo`; some architectures have none.
fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name");
    name.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

fn versions(agent: &Path) -> Vec<String> {
    let asked = [
        Program::new(agent).arg("--version"),
        Program::new("nft").arg("--version"),
        Program::new("iptables").arg("--version"),
        Program::new("haproxy").arg("-v"),
        Program::new("nginx").arg("-v"),
        Program::new("wireguard-go").arg("--version"),
    ];
    asked
        .iter()
        .filter_map(said)
        .map(|text| shortened(&text))
        .collect()
}

/// The first line that a program writes; `None` when there is no such program.
fn said(program: &Program) -> Option<String> {
    let output = program.output().ok()?;
    let all = output.stdout + &output.stderr;
    let line = all.lines().find(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

/// Without addresses of web sites, dates and names of releases.
fn shortened(text: &str) -> String {
    let words = text
        .split_whitespace()
        .filter(|word| !word.eq_ignore_ascii_case("version") && *word != "version:");
    words.take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_a_name_and_a_number() {
        let haproxy = "HAProxy version 2.6.12-1 2023/12/16 - https://haproxy.org/";
        assert_eq!(shortened(haproxy), "HAProxy 2.6.12-1");
        let nginx = "nginx version: nginx/1.22.1";
        assert_eq!(shortened(nginx), "nginx nginx/1.22.1");
        assert_eq!(
            shortened("nftables v1.0.6 (Lester Gooch #5)"),
            "nftables v1.0.6"
        );
    }

    #[test]
    fn the_processor_is_named_where_the_kernel_tells() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor : 1\n";
        assert_eq!(processor(cpuinfo), "Some CPU @ 2 GHz");
        assert_eq!(processor("processor : 0\n"), std::env::consts::ARCH);
    }
}

//! What the kernel knows of the processes of a contender: processor time, memory, files.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `USER_HZ`, the unit of times in /proc (proc_pid_stat(5)): 100 on every architecture that
/// the agent is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory in KiB, as `/proc/PID/status` has it, summed over processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// `VmRSS`: all that is resident. Pages that processes share count in each.
    pub resident: u64,
    /// `RssAnon`: the processes' own.
    pub own: u64,
}

/// Some processes and all that they have started.
#[derive(Debug, Clone, Default)]
pub struct Processes(Vec<u32>);

impl Processes {
    /// These processes.
    #[must_use]
    pub fn of(pids: &[u32]) -> Self {
        Self(pids.to_vec())
    }

    /// Whether there is none, so that there is nothing to be told of them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether programs that they started still run.
    ///
    /// # Errors
    ///
    /// When one of those named has ended.
    pub fn have_children(&self) -> Result<bool> {
        Ok(self.with_children()?.len() > self.0.len())
    }

    /// The processor time that they have used, with that of children that have ended.
    ///
    /// # Errors
    ///
    /// When one of those named has ended.
    pub fn processor_time(&self) -> Result<Duration> {
        let mut seconds = 0.0;
        for pid in self.with_children()? {
            // A child may end meanwhile; its time is then its parent's.
            if let Ok(stat) = read(pid, "stat") {
                seconds += seconds_in(&stat).with_context(|| format!("/proc/{pid}/stat"))?;
            }
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    /// The time that threads which still run have had a processor: as
    /// [`Self::processor_time`], but to the microsecond, for what is idle.
    ///
    /// # Errors
    ///
    /// When one of those named has ended, or the kernel keeps no such account
    /// (`CONFIG_SCHED_INFO`).
    pub fn scheduled_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for pid in self.with_children()? {
            let folder = format!("/proc/{pid}/task");
            for task in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
                let path = task?.path().join("schedstat");
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                nanoseconds += run_time_in(&text).with_context(|| format!("it says {text:?}"))?;
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Their memory.
    ///
    /// # Errors
    ///
    /// When one of those named has ended.
    pub fn memory(&self) -> Result<Memory> {
        let mut sum = Memory::default();
        for pid in self.with_children()? {
            let Ok(status) = read(pid, "status") else {
                continue;
            };
            sum.resident += kib(&status, "VmRSS")?;
            sum.own += kib(&status, "RssAnon")?;
        }
        Ok(sum)
    }

    /// How many files they have open.
    ///
    /// # Errors
    ///
    /// When one of them has ended.
    pub fn open_files(&self) -> Result<usize> {
        let mut count = 0;
        for pid in self.with_children()? {
            let path = format!("/proc/{pid}/fd");
            count += fs::read_dir(&path)
                .with_context(|| format!("cannot list {path}"))?
                .count();
        }
        Ok(count)
    }

    fn with_children(&self) -> Result<Vec<u32>> {
        let mut all = self.0.clone();
        for pid in &self.0 {
            read(*pid, "stat").context("a contender has ended")?;
        }
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let name = entry.context("cannot list /proc")?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let parent = read(pid, "stat").ok().and_then(|stat| parent_in(&stat));
            // Children have higher numbers, so the parent is known by now.
            if parent.is_some_and(|parent| all.contains(&parent)) && !all.contains(&pid) {
                all.push(pid);
            }
        }
        Ok(all)
    }
}

/// The time that all processors of this machine were not idle since it was started, in
/// seconds: everybody's, that of interrupts too.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn busy_machine() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    busy_seconds(line).with_context(|| format!("/proc/stat begins with {line:?}"))
}

/// `cpu user nice system idle iowait irq softirq …`; those after `steal` are in `user`.
fn busy_seconds(line: &str) -> Option<f64> {
    let fields = line.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = fields.take(7).filter_map(|one| one.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq] = ticks.as_slice() else {
        return None;
    };
    Some((user + nice + system + irq + softirq) / TICKS_PER_SECOND)
}

/// What follows the name, which is in parentheses and may hold anything: from field 3 on.
fn after_name(stat: &str) -> Option<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().collect())
}

/// utime, stime, cutime, cstime are fields 14 to 17.
fn seconds_in(stat: &str) -> Option<f64> {
    let fields = after_name(stat)?;
    let ticks: Option<Vec<f64>> = fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse().ok())
        .collect();
    Some(ticks?.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// The first figure is the time on a processor, in nanoseconds. Source: the kernel's
/// Documentation/scheduler/sched-stats.
fn run_time_in(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn parent_in(stat: &str) -> Option<u32> {
    after_name(stat)?.get(1)?.parse().ok()
}

fn kib(status: &str, key: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .with_context(|| format!("no {key} in /proc/PID/status"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("{key} is {number:?}"))
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (a) b) S 5 77 77 0 -1 4194560 1 2 3 4 150 50 7 3 20 0 1 0 9";

    #[test]
    fn times_are_found_whatever_the_process_is_called() {
        assert_eq!(seconds_in(STAT), Some(2.1));
        assert_eq!(parent_in(STAT), Some(5));
        assert_eq!(seconds_in("77 (a) S 5"), None);
    }

    #[test]
    fn a_machine_is_busy_when_it_is_neither_idle_nor_waits() {
        let line = "cpu  100 10 200 9999 50 5 85 33 0 0";
        assert_eq!(busy_seconds(line), Some(4.0));
        assert_eq!(busy_seconds("cpu0 1 2 3"), None);
    }

    #[test]
    fn this_process_has_memory_files_and_time() {
        let own = Processes::of(&[std::process::id()]);
        let memory = own.memory().unwrap();
        assert!(memory.resident >= memory.own && memory.own > 0);
        assert!(own.open_files().unwrap() > 2);
        own.processor_time().unwrap();
        own.have_children().unwrap();
        assert!(own.scheduled_time().unwrap() > Duration::ZERO);
        assert!(busy_machine().unwrap() > 0.0);
    }

    #[test]
    fn one_that_has_ended_is_an_error() {
        assert!(Processes::of(&[u32::MAX]).processor_time().is_err());
    }
}

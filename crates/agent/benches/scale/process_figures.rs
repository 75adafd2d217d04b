//! What the kernel knows of a process: CPU time, memory, open files.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `USER_HZ`, the unit of CPU times in /proc (man 5 proc_pid_stat): 100 on every
/// architecture that the agent is built for.
const TICKS_PER_SECOND: u64 = 100;

/// Memory in KiB, as `/proc/PID/status` has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// `VmRSS`: all that is resident.
    pub(crate) resident: u64,
    /// `RssAnon`: the part that is the process's own.
    pub(crate) own: u64,
    /// `VmHWM`: the most that ever was resident.
    pub(crate) peak: u64,
}

/// CPU time of a process and of its children that have ended.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = rest
        .split_whitespace()
        // utime, stime, cutime, cstime: fields 14 to 17, of which the third is the first here.
        .skip(11)
        .take(4)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()
        .context("/proc/PID/stat")?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Whether a program that it started still runs.
pub(crate) fn has_children(pid: u32) -> Result<bool> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("/proc/PID/task")?;
    for task in tasks {
        // Threads come and go.
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        if !children.trim().is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = read(pid, "status")?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .with_context(|| format!("/proc/PID/status has no {name}"))
    };
    Ok(Memory {
        resident: field("VmRSS")?,
        own: field("RssAnon")?,
        peak: field("VmHWM")?,
    })
}

/// How many files a process has open.
pub(crate) fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))
        .context("/proc/PID/fd")?
        .count())
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

//! What the kernel says about this process.

use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};

use super::ProcessReport;
use crate::moment::Moment;

/// What can be told about this process, which was started at `started`. What cannot be
/// read is left out.
pub(super) fn own_process(started: SystemTime, now: SystemTime) -> ProcessReport {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ProcessReport {
        pid: std::process::id(),
        started: Moment::seen(started, now),
        memory_bytes: bytes(&status, "VmRSS:"),
        memory_peak_bytes: bytes(&status, "VmHWM:"),
        open_files: fs::read_dir("/proc/self/fd")
            .ok()
            // One of them is the folder that is being read.
            .map(|entries| (entries.count() as u64).saturating_sub(1)),
        open_files_limit: getrlimit(Resource::RLIMIT_NOFILE)
            .ok()
            .map(|(soft, _)| soft),
    }
}

fn bytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_open_files() {
        let now = SystemTime::now();
        let process = own_process(now, now);
        assert!(process.memory_bytes.unwrap() > 0);
        assert!(process.memory_peak_bytes >= process.memory_bytes);
        assert!(process.open_files.unwrap() > 0);
        assert!(process.open_files_limit >= process.open_files);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(bytes("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288));
        assert_eq!(bytes("Name:\tx\n", "VmRSS:"), None);
        assert_eq!(bytes("VmRSS:\t12 MB\n", "VmRSS:"), None);
    }
}

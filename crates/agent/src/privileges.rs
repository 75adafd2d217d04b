//! What the agent needs to be allowed to do.

use std::fs;

use anyhow::{Context, bail};

/// A capability by name and bit (linux `include/uapi/linux/capability.h`).
struct Capability {
    name: &'static str,
    bit: u32,
    why: &'static str,
}

const NEEDED: [Capability; 2] = [
    Capability {
        name: "NET_ADMIN",
        bit: 12,
        why: "to program iptables, the intercept address and routes, and to mark the agent's sockets",
    },
    Capability {
        name: "NET_RAW",
        bit: 13,
        why: "for iptables, which opens a raw socket",
    },
];

/// Fails with everything that is missing, and how to grant it.
///
/// # Errors
///
/// When this process lacks a capability that it cannot do without.
pub(crate) fn check() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status")
        .context("read this process's capabilities from /proc/self/status")?;
    let effective = effective_capabilities(&status)
        .context("find the line CapEff in /proc/self/status; is this a Linux /proc?")?;
    let missing = missing(effective);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = missing
        .iter()
        .map(|c| format!("  {} {}", c.name, c.why))
        .collect();
    let names: Vec<_> = missing.iter().map(|c| c.name).collect();
    bail!(
        "this process lacks rights that it needs:\n{}\nRun it as root, or grant them: in Kubernetes \
         securityContext.capabilities.add: [{}] (with hostNetwork: true), with systemd \
         AmbientCapabilities={}",
        list.join("\n"),
        names.join(", "),
        names
            .iter()
            .map(|n| format!("CAP_{n}"))
            .collect::<Vec<_>>()
            .join(" "),
    );
}

/// What this process lacks: each capability with what it is needed for; none where that
/// cannot be told.
pub(crate) fn lacking() -> Option<Vec<(&'static str, &'static str)>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let missing = missing(effective_capabilities(&status)?);
    Some(missing.iter().map(|c| (c.name, c.why)).collect())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static Capability> {
    NEEDED
        .iter()
        .filter(|c| effective & (1 << c.bit) == 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_misses_nothing() {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(missing(effective_capabilities(status).unwrap()).is_empty());
    }

    #[test]
    fn each_missing_capability_is_named() {
        let names: Vec<_> = missing(1 << 12).iter().map(|c| c.name).collect();
        assert_eq!(names, ["NET_RAW"]);
        assert_eq!(missing(0).len(), NEEDED.len());
    }

    #[test]
    fn unreadable_status_is_not_taken_for_no_rights() {
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
        assert_eq!(effective_capabilities("CapEff:\tzz\n"), None);
    }
}

//! How this process may make private namespaces, and what to enable when it may not.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use nix::unistd::Uid;

use crate::namespace::sysctl_path;
use crate::process::Program;

/// The variable by which root has labs without a user namespace, where buffers of sockets
/// are as large as on a node.
const AS_ROOT: &str = "EDGEMESH_LAB_AS_ROOT";

/// How private namespaces can be had here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WayIn {
    UserNamespace,
    Root,
}

impl WayIn {
    pub(crate) const ALL: [Self; 2] = [Self::UserNamespace, Self::Root];

    /// As the process outside tells the one inside.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user-namespace",
            Self::Root => "root",
        }
    }

    /// The options of `unshare`.
    pub(crate) fn options(self) -> Vec<&'static str> {
        let mut options = match self {
            Self::UserNamespace => vec!["--user", "--map-root-user"],
            Self::Root => Vec::new(),
        };
        options.extend(["--net", "--mount", "--pid", "--fork"]);
        options.extend(["--kill-child", "--mount-proc"]);
        options
    }

    fn attempt(self) -> Result<()> {
        Program::new("unshare")
            .args(self.options())
            .arg("true")
            .run()
            .map(|_| ())
    }
}

/// Finds out once per process.
///
/// # Errors
///
/// When there is none, with what to enable.
pub(crate) fn way_in() -> Result<WayIn> {
    static FOUND: OnceLock<std::result::Result<WayIn, String>> = OnceLock::new();
    let find = || match std::env::var_os(AS_ROOT) {
        Some(_) => WayIn::Root.attempt().map(|()| WayIn::Root),
        None => find_way_in(),
    };
    FOUND
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|text| anyhow!(text))
}

/// Without a user namespace if this is root, and root may; else as [`way_in`].
///
/// # Errors
///
/// As [`way_in`].
pub(crate) fn way_in_of_root() -> Result<WayIn> {
    if Uid::effective().is_root() && WayIn::Root.attempt().is_ok() {
        Ok(WayIn::Root)
    } else {
        way_in()
    }
}

fn find_way_in() -> Result<WayIn> {
    let Err(refusal) = WayIn::UserNamespace.attempt() else {
        return Ok(WayIn::UserNamespace);
    };
    if Uid::effective().is_root() {
        return match WayIn::Root.attempt() {
            Ok(()) => Ok(WayIn::Root),
            Err(error) => Err(error.context(
                "root may not make namespaces here (a container without CAP_SYS_ADMIN?); \
                 a lab needs util-linux's unshare and that right",
            )),
        };
    }
    Err(refusal.context(format!(
        "this user may not make user namespaces, which a lab without root needs: {}; \
         or run it as root",
        what_to_enable(read_sysctl)
    )))
}

fn read_sysctl(key: &str) -> Option<String> {
    std::fs::read_to_string(sysctl_path(key)).ok()
}

/// The switches that forbid user namespaces, as far as this kernel has them.
fn what_to_enable(sysctl: impl Fn(&str) -> Option<String>) -> String {
    let switches = [
        ("user.max_user_namespaces", "0", "10000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let found: Vec<String> = switches
        .into_iter()
        .filter(|(key, off, _)| sysctl(key).is_some_and(|value| value.trim() == *off))
        .map(|(key, _, on)| format!("`sysctl -w {key}={on}`"))
        .collect();
    if found.is_empty() {
        "no sysctl forbids them, so a seccomp or AppArmor profile of the surrounding container \
         may"
        .to_owned()
    } else {
        format!("allow them by {}", found.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_that_forbids_user_namespaces_is_named() {
        let ubuntu = what_to_enable(|key| match key {
            "user.max_user_namespaces" => Some("96365\n".to_owned()),
            "kernel.apparmor_restrict_unprivileged_userns" => Some("1\n".to_owned()),
            _ => None,
        });
        assert_eq!(
            ubuntu,
            "allow them by `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
        );
        assert!(what_to_enable(|_| None).starts_with("no sysctl forbids them"));
    }
}

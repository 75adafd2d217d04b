//! Kernel parameters that are either on or off, of the network namespace that this runs in.

use std::fs;
use std::io;
use std::path::Path;

use crate::Family;

/// Where the kernel shows them.
pub(super) const SYSCTL_ROOT: &str = "/proc/sys";

/// A kernel parameter, by its name for sysctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Parameter(pub(super) &'static str);

/// What the kernel says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// It is 0.
    Off,
    /// It is anything else.
    On,
    /// There is no such parameter, or it can't be read.
    Absent,
}

/// Whether packets of a family are forwarded between devices.
pub(super) fn forwarding(family: Family) -> Parameter {
    Parameter(match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    })
}

/// Whether packets that only cross a bridge are shown to a family's NAT. It comes with
/// `br_netfilter`, and since Linux 5.3 each network namespace has its own.
pub(super) fn bridge_calls(family: Family) -> Parameter {
    Parameter(match family {
        Family::V4 => "net.bridge.bridge-nf-call-iptables",
        Family::V6 => "net.bridge.bridge-nf-call-ip6tables",
    })
}

impl Parameter {
    pub(super) fn read(self, root: &Path) -> Setting {
        match fs::read_to_string(self.path(root)) {
            Ok(text) if text.trim() == "0" => Setting::Off,
            Ok(_) => Setting::On,
            Err(_) => Setting::Absent,
        }
    }

    pub(super) fn turn_on(self, root: &Path) -> io::Result<()> {
        fs::write(self.path(root), "1\n")
    }

    fn path(self, root: &Path) -> std::path::PathBuf {
        root.join(self.0.replace('.', "/"))
    }
}

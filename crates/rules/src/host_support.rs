//! Whether this host can intercept a family at all.

use std::fmt;
use std::path::Path;

use crate::error::RulesError;
use crate::{Backend, BackendSetting, Family};

/// Whether the host can intercept a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSupport {
    /// It can.
    Available,
    /// It can't, for this reason. For IPv6 that is how many hosts are, and no error.
    Unavailable(String),
}

impl fmt::Display for HostSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostSupport::Available => f.write_str("available"),
            HostSupport::Unavailable(reason) => write!(f, "unavailable: {reason}"),
        }
    }
}

/// Finds out whether the host has the family, what its rules are programmed with, and the
/// right to use it. Changes nothing.
pub async fn host_supports(family: Family, setting: BackendSetting) -> HostSupport {
    if let Some(reason) = missing_from_kernel(family) {
        return HostSupport::Unavailable(reason.to_owned());
    }
    match try_out(family, setting).await {
        Ok(()) => HostSupport::Available,
        Err(error) => HostSupport::Unavailable(error.to_string()),
    }
}

async fn try_out(family: Family, setting: BackendSetting) -> Result<(), RulesError> {
    Backend::open(family, setting).await?.try_out().await
}

fn missing_from_kernel(family: Family) -> Option<&'static str> {
    match family {
        Family::V4 => None,
        Family::V6 if !Path::new("/proc/thread-self/net/if_inet6").exists() => {
            Some("the kernel has no IPv6 (ipv6.disable=1 at boot, or built without)")
        }
        Family::V6 if is_switched_off() => {
            Some("IPv6 is switched off on lo (sysctl net.ipv6.conf.lo.disable_ipv6 is 1)")
        }
        Family::V6 => None,
    }
}

fn is_switched_off() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|value| value.trim() != "0")
}

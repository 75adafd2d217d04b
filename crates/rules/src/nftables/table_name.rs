//! Names of what is ours in nf_tables.

use std::fmt;

use crate::{Family, OwnChain};

/// A table of ours.
///
/// There are two names because a table that is owned can be changed by its owner alone:
/// while the agent that came before still holds the first one, the next makes the other.
/// Both may stand for that time: the first decision on a connection counts, and either
/// leads to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableName {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
}

impl TableName {
    /// The tables that can be ours, the usual one first.
    pub(crate) fn all(family: Family) -> [Self; 2] {
        ["edgemesh", "edgemesh-2"].map(|name| Self { family, name })
    }

    /// The table that refuses what nobody took, where there is no kube-proxy. It belongs to
    /// nobody: it has to outlive the agent.
    pub(crate) fn refusing(family: Family) -> Self {
        Self {
            family,
            name: "edgemesh-refuse",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.nft_name(), self.name)
    }
}

/// The map of the portals, and the number by which one transaction refers to it.
pub(super) const PORTALS: &str = "portals";
pub(super) const PORTALS_ID: u32 = 1;

/// The map of portals with several destinations: which chain chooses one.
pub(super) const SHARED: &str = "shared";

/// The map of their endpoints, numbered from 0.
pub(super) const ENDPOINTS: &str = "endpoints";

/// The map of endpoints, numbered from 0, of portals whose clients keep theirs.
pub(super) const FIRST_CHOICES: &str = "first-choices";

/// The set of the addresses of portals that the kernel sends to endpoints.
pub(super) const ADDRESSES: &str = "addresses";

/// The set of pods that may connect to themselves.
pub(super) const HAIRPINS: &str = "hairpins";

/// The set whose element lives as long as the agent shows that it does.
pub(super) const ALIVE: &str = "alive";
pub(super) const ALIVE_ID: u32 = 2;

/// Before iptables' nat chains and kube-proxy's, which are at -100 (`NF_IP_PRI_NAT_DST`).
pub(super) const PRIORITY: i32 = -110;

/// The base chain in postrouting, and where it sends connections that may have to be
/// masqueraded.
pub(super) const LEAVING: &str = "portals-leaving";
pub(super) const MASQUERADING: &str = "masquerading";

/// Before iptables' nat chains and kube-proxy's, which are at 100 (`NF_IP_PRI_NAT_SRC`).
pub(super) const LEAVING_PRIORITY: i32 = 90;

/// What nft calls the chain.
pub(super) fn chain_name(chain: OwnChain) -> &'static str {
    match chain {
        OwnChain::Container => "portals-container",
        OwnChain::Host => "portals-host",
    }
}

/// What nft calls the chain's hook.
pub(super) fn hook_name(chain: OwnChain) -> &'static str {
    match chain {
        OwnChain::Container => "prerouting",
        OwnChain::Host => "output",
    }
}

/// `NF_INET_*`.
pub(super) fn hook_number(chain: OwnChain) -> u32 {
    match chain {
        OwnChain::Container => 0,
        OwnChain::Host => 3,
    }
}

//! Names that others see in the nat table: ours are a contract, kube-proxy's are given.

use std::fmt;

/// The comment of our jumps, as EdgeMesh and kube-proxy's user-space mode write it.
pub const JUMP_COMMENT: &str = "handle ClusterIPs; NOTE: this must be before the NodePort rules";

/// kube-proxy's entry chain, in iptables and ipvs mode (kubernetes
/// `pkg/proxy/iptables/proxier.go`).
pub const KUBE_SERVICES: &str = "KUBE-SERVICES";

/// What the names of all our chains begin with.
pub(crate) const OWN_PREFIX: &str = "EDGEMESH-";

/// What the names of the chains begin with that hold portals by the last bits of their address.
pub(crate) const BUCKET_PREFIX: &str = "EDGEMESH-PORTALS-";

/// What the names of the chains begin with that share a portal's connections among
/// endpoints; what follows tells the portal.
pub(crate) const SERVICE_PREFIX: &str = "EDGEMESH-SVC-";

/// The chain that masquerades what the kernel sends on: jumped to from `POSTROUTING`.
pub(crate) const MASQUERADE: &str = "EDGEMESH-POSTROUTING";

/// The built-in chain that jumps to [`MASQUERADE`].
pub(crate) const POSTROUTING: &str = "POSTROUTING";

/// The comment of the jump to [`MASQUERADE`].
pub(crate) const MASQUERADE_COMMENT: &str = "edgemesh: masquerade what came through a portal";

/// The chains that belong to us, wholly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnChain {
    /// For traffic of pods and of others: jumped to from `PREROUTING`.
    Container,
    /// For traffic of the host's own processes: jumped to from `OUTPUT`.
    Host,
}

impl OwnChain {
    /// Both, in the order in which they are written.
    pub const BOTH: [OwnChain; 2] = [OwnChain::Container, OwnChain::Host];

    /// The chain's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OwnChain::Container => "EDGEMESH-PORTALS-CONTAINER",
            OwnChain::Host => "EDGEMESH-PORTALS-HOST",
        }
    }

    /// The built-in chain that jumps to it.
    #[must_use]
    pub fn hook(self) -> &'static str {
        match self {
            OwnChain::Container => "PREROUTING",
            OwnChain::Host => "OUTPUT",
        }
    }

    /// Its place in per-chain arrays that follow [`Self::BOTH`].
    pub(crate) fn index(self) -> usize {
        match self {
            OwnChain::Container => 0,
            OwnChain::Host => 1,
        }
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|chain| chain.name() == name)
    }

    pub(crate) fn by_hook(hook: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|chain| chain.hook() == hook)
    }
}

impl fmt::Display for OwnChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

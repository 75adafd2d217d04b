//! Who takes the connections of a forwarded portal to their endpoints: the kernel by NAT,
//! the agent in user mode, or both.
//!
//! The kernel reaches what is reached natively; the tunnel begins at the agent. Where a portal
//! has endpoints of both kinds, both take part, such that each endpoint has the same share.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{FamilyFacts, Policy, PortalEndpoint, Way};

/// What the operator allows (`modules.edgeProxy.datapath`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatapathMode {
    /// The kernel takes what it can, the agent the rest.
    #[default]
    Hybrid,
    /// The agent takes everything.
    User,
}

/// Who takes the connections of a portal to their endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datapath {
    /// The kernel. All endpoints are native.
    Kernel,
    /// The kernel those to native endpoints, the agent those to the others.
    KernelAndAgent,
    /// The agent, for this reason.
    User(UserMode),
}

/// Why the agent takes all connections of a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UserMode {
    /// `modules.edgeProxy.datapath: user`.
    Configured,
    /// Every endpoint is reached through the tunnel.
    NoNativeEndpoint,
    /// Clients are to keep their endpoint, which may be one behind the tunnel: only one who
    /// sees all connections of a client can do that.
    AffinityAcrossTunnel,
    /// The rules can't ([`FamilyFacts::no_kernel_path`]).
    RulesCannot,
    /// Clients are to keep their endpoint, and the rules can't see to that
    /// ([`FamilyFacts::no_affinity`]).
    RulesCannotKeepClients,
    /// The host does not forward packets of this family ([`FamilyFacts::not_forwarding`]).
    NotForwarding,
    /// An endpoint is on a bridge whose packets NAT does not see ([`FamilyFacts::bypassing`]).
    PastNat,
}

/// Who takes connections to `endpoints`, which are of one family.
pub(crate) fn datapath(
    endpoints: &[PortalEndpoint],
    affinity: Option<Duration>,
    policy: &Policy,
) -> Datapath {
    match obstacle(endpoints, affinity, policy) {
        Some(why) => Datapath::User(why),
        None if endpoints.iter().all(is_native) => Datapath::Kernel,
        None => Datapath::KernelAndAgent,
    }
}

fn obstacle(
    endpoints: &[PortalEndpoint],
    affinity: Option<Duration>,
    policy: &Policy,
) -> Option<UserMode> {
    match policy.datapath {
        DatapathMode::User => return Some(UserMode::Configured),
        DatapathMode::Hybrid => {}
    }
    let mut native = endpoints.iter().filter(|endpoint| is_native(endpoint));
    let Some(first) = native.clone().next() else {
        return Some(UserMode::NoNativeEndpoint);
    };
    let facts = policy.host.of(first.address.ip());
    if affinity.is_some() && !endpoints.iter().all(is_native) {
        Some(UserMode::AffinityAcrossTunnel)
    } else if facts.no_kernel_path.is_some() {
        Some(UserMode::RulesCannot)
    } else if affinity.is_some() && facts.no_affinity.is_some() {
        Some(UserMode::RulesCannotKeepClients)
    } else if facts.not_forwarding.is_some() {
        Some(UserMode::NotForwarding)
    } else {
        native
            .any(|endpoint| facts.bypassing(endpoint.address).is_some())
            .then_some(UserMode::PastNat)
    }
}

fn is_native(endpoint: &PortalEndpoint) -> bool {
    match endpoint.way {
        Way::Native => true,
        Way::Tunnel => false,
    }
}

impl Datapath {
    /// Those of a portal's `endpoints` to which the kernel takes connections.
    pub fn kernel_endpoints(
        self,
        endpoints: &[PortalEndpoint],
    ) -> impl Iterator<Item = &PortalEndpoint> {
        let has_part = match self {
            Datapath::Kernel | Datapath::KernelAndAgent => true,
            Datapath::User(_) => false,
        };
        endpoints
            .iter()
            .filter(move |endpoint| has_part && is_native(endpoint))
    }
}

impl UserMode {
    /// What `facts`, those of the family, say besides about a portal with these endpoints.
    pub fn detail(
        self,
        facts: &FamilyFacts,
        endpoints: impl IntoIterator<Item = SocketAddr>,
    ) -> Option<&str> {
        match self {
            UserMode::RulesCannot => facts.no_kernel_path.as_deref(),
            UserMode::RulesCannotKeepClients => facts.no_affinity.as_deref(),
            UserMode::NotForwarding => facts.not_forwarding.as_deref(),
            UserMode::PastNat => endpoints
                .into_iter()
                .find_map(|endpoint| facts.bypassing(endpoint))
                .map(|bypassing| &*bypassing.why),
            UserMode::Configured | UserMode::NoNativeEndpoint | UserMode::AffinityAcrossTunnel => {
                None
            }
        }
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datapath::Kernel => f.write_str("by the kernel"),
            Datapath::KernelAndAgent => f.write_str("by the kernel and the agent"),
            Datapath::User(why) => write!(f, "in user mode: {why}"),
        }
    }
}

impl fmt::Display for UserMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UserMode::Configured => "modules.edgeProxy.datapath is user",
            UserMode::NoNativeEndpoint => "every endpoint is reached through the tunnel",
            UserMode::AffinityAcrossTunnel => {
                "sessionAffinity, and an endpoint is reached through the tunnel"
            }
            UserMode::RulesCannot => "the rules can't send connections to endpoints here",
            UserMode::RulesCannotKeepClients => {
                "sessionAffinity, and the rules can't keep clients with their endpoint here"
            }
            UserMode::NotForwarding => "this host forwards no packets of the family",
            UserMode::PastNat => "an endpoint is on a bridge whose packets are not shown to NAT",
        })
    }
}

#[cfg(test)]
#[path = "datapath_tests.rs"]
mod tests;

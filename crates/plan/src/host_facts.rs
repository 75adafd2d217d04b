//! What of this host decides whether its kernel can take connections to endpoints itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

/// What was found out about the host. The default is a host where nothing stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// What holds for IPv4.
    pub ipv4: FamilyFacts,
    /// What holds for IPv6.
    pub ipv6: FamilyFacts,
}

/// What was found out about one address family. Reasons are whole clauses, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyFacts {
    /// Why the kernel forwards no packets between devices; none when it does.
    pub not_forwarding: Option<Arc<str>>,
    /// Networks whose members may talk past NAT.
    pub bypassing: Arc<[BypassingNetwork]>,
    /// Why the rules can't send connections to endpoints; none when they can.
    pub no_kernel_path: Option<Arc<str>>,
    /// Why they can't keep a client with its endpoint; none when they can.
    pub no_affinity: Option<Arc<str>>,
}

/// A network on a Linux bridge whose packets are not shown to NAT. When one of its members
/// answers another, the answer stays on the bridge, and NAT can't put the ClusterIP back in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BypassingNetwork {
    /// The addresses that are reached through the bridge.
    pub network: IpNet,
    /// The bridge, and why NAT does not see its packets.
    pub why: Arc<str>,
}

impl HostFacts {
    /// What holds for the family of `ip`.
    #[must_use]
    pub fn of(&self, ip: IpAddr) -> &FamilyFacts {
        match ip {
            IpAddr::V4(_) => &self.ipv4,
            IpAddr::V6(_) => &self.ipv6,
        }
    }
}

impl FamilyFacts {
    /// The network past NAT that `endpoint` is in, if it is in one.
    #[must_use]
    pub fn bypassing(&self, endpoint: SocketAddr) -> Option<&BypassingNetwork> {
        self.bypassing
            .iter()
            .find(|bypassing| bypassing.network.contains(&endpoint.ip()))
    }
}

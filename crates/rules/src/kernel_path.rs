//! Portals whose connections the kernel sends to endpoints itself, without the agent.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::Family;

/// How the kernel serves a portal: each new connection goes to one of the endpoints, each
/// as likely as any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPath {
    endpoints: Arc<[KernelEndpoint]>,
    sharing: Sharing,
}

/// An endpoint that this node reaches without the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelEndpoint {
    /// Where the connection goes.
    pub address: SocketAddr,
    /// Whether it is a pod of this node: such a one may connect to itself, and would see a
    /// packet from its own address, were that not masqueraded.
    pub is_pod_here: bool,
}

/// Who else has a part in a portal that the kernel serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: all endpoints are the kernel's.
    Alone,
    /// Nobody, and a client keeps its endpoint until it was silent for so long
    /// (`sessionAffinity: ClientIP`). Whole seconds, as both backends count.
    Sticky(Duration),
    /// The agent: so many endpoints more are reached by it alone, and each has the same
    /// part in all connections as one of the kernel's.
    WithAgent(NonZeroU32),
}

impl KernelPath {
    /// The way to `endpoints`, in any order; none without any, or when they are not all of
    /// one family.
    #[must_use]
    pub fn new(
        endpoints: impl IntoIterator<Item = KernelEndpoint>,
        sharing: Sharing,
    ) -> Option<Self> {
        let mut endpoints: Vec<KernelEndpoint> = endpoints.into_iter().collect();
        endpoints.sort_unstable();
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        let family = Family::of(endpoints.first()?.address.ip());
        let of_one_family = endpoints
            .iter()
            .all(|endpoint| Family::of(endpoint.address.ip()) == family);
        of_one_family.then(|| Self {
            endpoints: endpoints.into(),
            sharing,
        })
    }

    /// The endpoints, sorted by address, without duplicates; never empty.
    #[must_use]
    pub fn endpoints(&self) -> &[KernelEndpoint] {
        &self.endpoints
    }

    /// Who else has a part.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// The family of all endpoints.
    #[must_use]
    pub fn family(&self) -> Family {
        self.endpoints
            .first()
            .map_or(Family::V4, |endpoint| Family::of(endpoint.address.ip()))
    }

    /// Whether new connections may go to `address`.
    #[must_use]
    pub fn leads_to(&self, address: SocketAddr) -> bool {
        self.endpoints
            .binary_search_by_key(&address, |endpoint| endpoint.address)
            .is_ok()
    }

    /// Addresses of pods here, which may connect to themselves.
    pub(crate) fn hairpins(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.is_pod_here)
            .map(|endpoint| endpoint.address.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> KernelEndpoint {
        KernelEndpoint {
            address: address.parse().unwrap(),
            is_pod_here: false,
        }
    }

    #[test]
    fn endpoints_are_sorted_and_named_once() {
        let given = ["10.244.1.3:80", "10.244.1.2:80", "10.244.1.3:80"].map(endpoint);
        let path = KernelPath::new(given, Sharing::Alone).unwrap();
        assert_eq!(
            path.endpoints(),
            ["10.244.1.2:80", "10.244.1.3:80"].map(endpoint)
        );
        assert!(path.leads_to("10.244.1.2:80".parse().unwrap()));
        assert!(!path.leads_to("10.244.1.2:81".parse().unwrap()));
    }

    #[test]
    fn there_is_no_way_to_nowhere_or_into_both_families() {
        assert_eq!(KernelPath::new([], Sharing::Alone), None);
        let both = ["10.244.1.3:80", "[fd00::3]:80"].map(endpoint);
        assert_eq!(KernelPath::new(both, Sharing::Alone), None);
    }
}

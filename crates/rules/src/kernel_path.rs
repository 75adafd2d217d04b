//! Portals whose connections the kernel sends to endpoints itself, without the agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::Family;

/// How the kernel serves a portal: each new connection goes to one of the endpoints, each
/// as likely as any other.
///
/// Where the kernel draws a number and looks the endpoint up, each endpoint has a number, below
/// that of all. Which one it has is of no matter to clients, but one that changes has to be told
/// to the kernel; so a path that [follows](Self::following) another changes as few as can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPath {
    endpoints: Arc<[KernelEndpoint]>,
    sharing: Sharing,
    /// By number; none: numbered as they are sorted.
    numbered: Option<Arc<[SocketAddr]>>,
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
            numbered: None,
        })
    }

    /// The same path, whose endpoints keep the numbers that they have in `earlier`. One that is
    /// new takes the number of one that is gone; where there are fewer than before, those with
    /// the last numbers take such as have become free.
    #[must_use]
    pub fn following(mut self, earlier: &Self) -> Self {
        let count = self.endpoints.len();
        let mut places: Vec<Option<SocketAddr>> = vec![None; count];
        let mut kept = BTreeSet::new();
        let mut without_place = Vec::new();
        for (number, address) in earlier.numbered().enumerate() {
            if self.leads_to(address) {
                kept.insert(address);
                match places.get_mut(number) {
                    Some(place) => *place = Some(address),
                    None => without_place.push(address),
                }
            }
        }
        let addresses = self.endpoints.iter().map(|endpoint| endpoint.address);
        without_place.extend(addresses.filter(|address| !kept.contains(address)));
        let mut without_place = without_place.into_iter();
        let numbered: Arc<[SocketAddr]> = places
            .into_iter()
            .filter_map(|place| place.or_else(|| without_place.next()))
            .collect();
        let as_sorted = numbered.is_sorted();
        self.numbered = (!as_sorted).then_some(numbered);
        self
    }

    /// The endpoints' addresses by their numbers, from 0 on.
    pub fn numbered(&self) -> impl Iterator<Item = SocketAddr> {
        let numbered = self
            .numbered
            .iter()
            .flat_map(|numbered| numbered.iter().copied());
        let as_sorted = match self.numbered {
            None => self.endpoints(),
            Some(_) => &[],
        };
        numbered.chain(as_sorted.iter().map(|endpoint| endpoint.address))
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
    use std::iter::zip;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn endpoint(address: &str) -> KernelEndpoint {
        KernelEndpoint {
            address: address.parse().unwrap(),
            is_pod_here: false,
        }
    }

    fn to(pods: impl IntoIterator<Item = u8>) -> KernelPath {
        let endpoints = pods.into_iter().map(|pod| KernelEndpoint {
            address: ([10, 244, 1, pod], 80).into(),
            is_pod_here: false,
        });
        KernelPath::new(endpoints, Sharing::Alone).unwrap()
    }

    /// The last byte of each address, by number.
    fn numbers(path: &KernelPath) -> Vec<u8> {
        path.numbered()
            .map(|address| match address.ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            })
            .collect()
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

    #[test]
    fn who_replaces_an_endpoint_takes_its_number_and_the_last_takes_that_of_one_removed() {
        let first = to([2, 3, 4, 5]);
        assert_eq!(numbers(&first), [2, 3, 4, 5]);
        let replaced = to([1, 2, 4, 5]).following(&first);
        assert_eq!(numbers(&replaced), [2, 1, 4, 5]);
        let fewer = to([1, 4, 5]).following(&replaced);
        assert_eq!(numbers(&fewer), [5, 1, 4]);
        let more = to([1, 3, 4, 5]).following(&fewer);
        assert_eq!(numbers(&more), [5, 1, 4, 3]);
        assert!(more.leads_to("10.244.1.5:80".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn after_any_changes_each_endpoint_has_one_number_and_few_have_another(
            steps in vec(btree_set(0_u8..40, 1..20), 1..12),
        ) {
            let mut path = to(steps[0].iter().copied());
            for pods in steps {
                let next = to(pods.iter().copied()).following(&path);
                let (before, after) = (numbers(&path), numbers(&next));
                let mut sorted = after.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.into_iter().eq(pods.iter().copied()));
                let others = zip(&before, &after).filter(|(before, after)| before != after);
                let gone = before.iter().filter(|pod| !pods.contains(pod)).count();
                prop_assert!(others.count() <= gone);
                prop_assert_eq!(next.clone().following(&next), next.clone());
                path = next;
            }
        }
    }
}

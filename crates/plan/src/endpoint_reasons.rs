//! What becomes of every endpoint of a service port, used or not, and why: for people.
//!
//! [`crate::plan()`] keeps only the endpoints that are used; this tells of the others, by the
//! same rules.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::{
    Catalog, Endpoint, EndpointState, NodeName, Service, ServicePort, TrafficPolicy,
};

use crate::topology::{Place, is_dialable, listed, usable_endpoints};
use crate::{EndpointChoice, Policy, PortalEndpoint, Reachability, WayReason};

/// An endpoint of a service port, and whether a portal leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReason {
    /// Its address and port.
    pub address: SocketAddr,
    /// The node that it runs on; none for endpoints outside the cluster.
    pub node: Option<NodeName>,
    /// What its slice says about it.
    pub state: EndpointState,
    /// Why the portal does not lead to it; none when it does.
    pub unused: Option<Unused>,
    /// Why it is reached the way it is, or would be.
    pub way: WayReason,
}

/// Why a portal does not lead to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unused {
    /// It is of the other IP family than the portal.
    OtherFamily,
    /// Its address can belong to no endpoint (loopback, link-local, multicast, unspecified).
    NoEndpointAddress,
    /// It is not ready.
    NotReady,
    /// It is shutting down, and others are ready.
    Terminating,
    /// It is not on this node, and `internalTrafficPolicy` is `Local`.
    OtherNode,
    /// Topology hints name other nodes or zones for it.
    HintedElsewhere,
    /// Another slice says better things of the same address.
    BetterSlice,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unused::OtherFamily => "other IP family",
            Unused::NoEndpointAddress => "its address can be no endpoint's",
            Unused::NotReady => "not ready",
            Unused::Terminating => "shutting down, and others are ready",
            Unused::OtherNode => "not on this node (internalTrafficPolicy: Local)",
            Unused::HintedElsewhere => "topology hints name it for others",
            Unused::BetterSlice => "listed twice, the other entry counts",
        })
    }
}

/// Every endpoint that the slices list for `port`, sorted by address, with what clients of
/// the portal at `frontend_ip` have to do with it. Pure.
#[must_use]
pub fn endpoint_reasons(
    catalog: &Catalog,
    reachability: &Reachability,
    policy: &Policy,
    service: &Service,
    port: &ServicePort,
    frontend_ip: IpAddr,
) -> Vec<EndpointReason> {
    let place = Place::of(catalog, reachability, policy);
    let usable = usable_endpoints(catalog, service, port, frontend_ip, &place).ok();
    let mut reasons: Vec<EndpointReason> = listed(catalog, service, port)
        .map(|(address, endpoint)| EndpointReason {
            address,
            node: endpoint.node.clone(),
            state: endpoint.state,
            way: reachability.reason(&policy.node, endpoint.node.as_ref(), address.ip()),
            unused: unused(
                address,
                endpoint,
                frontend_ip,
                service,
                &place,
                usable.as_ref(),
            ),
        })
        .collect();
    reasons.sort_by_key(|reason| (reason.address, reason.unused.is_some(), reason.state));
    reasons.dedup_by(|later, earlier| later.address == earlier.address && later == earlier);
    reasons
}

type Usable = (std::sync::Arc<[PortalEndpoint]>, EndpointChoice);

fn unused(
    address: SocketAddr,
    endpoint: &Endpoint,
    frontend_ip: IpAddr,
    service: &Service,
    place: &Place<'_>,
    usable: Option<&Usable>,
) -> Option<Unused> {
    if address.is_ipv4() != frontend_ip.is_ipv4() {
        return Some(Unused::OtherFamily);
    }
    if !is_dialable(address.ip()) {
        return Some(Unused::NoEndpointAddress);
    }
    let chosen = usable.filter(|(chosen, _)| chosen.iter().any(|used| used.address == address));
    let off_node = service.internal_traffic_policy == TrafficPolicy::Local
        && endpoint.node.as_ref() != Some(place.node);
    match (endpoint.state, chosen) {
        (EndpointState::NotReady, _) => Some(Unused::NotReady),
        (EndpointState::Ready | EndpointState::ServingTerminating, _) if off_node => {
            Some(Unused::OtherNode)
        }
        (EndpointState::Ready, Some(_)) => None,
        (EndpointState::Ready, None) => Some(Unused::HintedElsewhere),
        (EndpointState::ServingTerminating, Some((_, choice))) => match choice {
            EndpointChoice::ServingTerminating | EndpointChoice::ServingTerminatingOnNode => None,
            EndpointChoice::Ready
            | EndpointChoice::HintedForNode
            | EndpointChoice::HintedForZone
            | EndpointChoice::ReadyOnNode => Some(Unused::BetterSlice),
        },
        (EndpointState::ServingTerminating, None) => Some(Unused::Terminating),
    }
}

#[cfg(test)]
#[path = "endpoint_reasons_tests.rs"]
mod tests;

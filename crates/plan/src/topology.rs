//! Which endpoints of a service port this node may use.
//!
//! The rules are kube-proxy's (`CategorizeEndpoints` and `topologyModeFromHints`,
//! kubernetes `pkg/proxy/topology.go`; folding of slices,
//! `pkg/proxy/endpointslicecache.go`), so that a Service behaves the same whoever
//! serves it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::{
    Catalog, Endpoint, EndpointState, NodeName, Service, ServicePort, TrafficPolicy,
};

use crate::{EndpointChoice, Policy, PortalEndpoint, Reachability, Refusal, Way};

/// Where this node is, for topology decisions, and whom it reaches how.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) node: &'a NodeName,
    pub(crate) zone: Option<&'a str>,
    pub(crate) reachability: &'a Reachability,
}

impl<'a> Place<'a> {
    /// The place of the policy's node, whose zone the catalog knows.
    pub(crate) fn of(
        catalog: &'a Catalog,
        reachability: &'a Reachability,
        policy: &'a Policy,
    ) -> Self {
        let node = catalog.node(&policy.node);
        Self {
            node: &policy.node,
            zone: node.and_then(|node| node.zone.as_deref()),
            reachability,
        }
    }

    /// The way to an endpoint with the address `ip` on `node`.
    pub(crate) fn way(&self, node: Option<&NodeName>, ip: IpAddr) -> Way {
        self.reachability.way(self.node, node, ip)
    }
}

/// The endpoints behind `port` that clients of `frontend_ip` are sent to, or why there is none.
pub(crate) fn usable_endpoints(
    catalog: &Catalog,
    service: &Service,
    port: &ServicePort,
    frontend_ip: IpAddr,
    place: &Place<'_>,
) -> Result<(Arc<[PortalEndpoint]>, EndpointChoice), Refusal> {
    let candidates = candidates(catalog, service, port, frontend_ip);
    match service.internal_traffic_policy {
        TrafficPolicy::Cluster => {
            let preferred = preference_from_hints(&candidates, place);
            first_not_empty(
                &candidates,
                place,
                &[
                    (preferred, &|endpoint| {
                        endpoint.state == EndpointState::Ready
                            && preferred_by(preferred, endpoint, place)
                    }),
                    (EndpointChoice::ServingTerminating, &|endpoint| {
                        endpoint.state == EndpointState::ServingTerminating
                    }),
                ],
            )
            .ok_or(Refusal::NoEndpoints)
        }
        TrafficPolicy::Local => first_not_empty(
            &candidates,
            place,
            &[
                (EndpointChoice::ReadyOnNode, &|endpoint| {
                    endpoint.state == EndpointState::Ready && on_node(endpoint, place)
                }),
                (EndpointChoice::ServingTerminatingOnNode, &|endpoint| {
                    endpoint.state == EndpointState::ServingTerminating && on_node(endpoint, place)
                }),
            ],
        )
        .ok_or(
            if candidates
                .values()
                .any(|e| e.state != EndpointState::NotReady)
            {
                Refusal::NoEndpointsOnNode
            } else {
                Refusal::NoEndpoints
            },
        ),
    }
}

/// All endpoints of the port in the frontend's family, one per address.
///
/// While an endpoint moves from one slice to another it may stand in both, or a
/// pod's address may already belong to the next pod: the better state wins.
fn candidates<'a>(
    catalog: &'a Catalog,
    service: &Service,
    port: &ServicePort,
    frontend_ip: IpAddr,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut by_address: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for (address, endpoint) in listed(catalog, service, port) {
        if address.is_ipv4() != frontend_ip.is_ipv4() || !is_dialable(address.ip()) {
            continue;
        }
        by_address
            .entry(address)
            .and_modify(|known| {
                if endpoint.state < known.state {
                    *known = endpoint;
                }
            })
            .or_insert(endpoint);
    }
    by_address
}

/// Whatever the slices list for `port`, usable or not, in their order.
pub(crate) fn listed<'a>(
    catalog: &'a Catalog,
    service: &Service,
    port: &ServicePort,
) -> impl Iterator<Item = (SocketAddr, &'a Endpoint)> {
    catalog.slices_of(&service.name).flat_map(move |slice| {
        slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
            .flat_map(|p| {
                slice
                    .endpoints
                    .iter()
                    .map(|endpoint| (SocketAddr::new(endpoint.address, p.port), endpoint))
            })
    })
}

/// Whether an address can be an endpoint. The API server admits no others
/// (`ValidateEndpointIP`, kubernetes `pkg/apis/core/validation`); a manifest or a
/// tampered object must not make us dial this host's own loopback.
pub(crate) fn is_dialable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(link_local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// Hints count only when every ready endpoint has one, and one of them is for us.
fn preference_from_hints(
    candidates: &BTreeMap<SocketAddr, &Endpoint>,
    place: &Place<'_>,
) -> EndpointChoice {
    let ready = || {
        candidates
            .values()
            .filter(|e| e.state == EndpointState::Ready)
    };
    let all_have = |has: fn(&Endpoint) -> bool| ready().all(|e| has(e));
    let any_for_us = |choice| ready().any(|e| preferred_by(choice, e, place));
    let node_hints = |e: &Endpoint| e.hints.as_ref().is_some_and(|h| !h.nodes.is_empty());
    let zone_hints = |e: &Endpoint| e.hints.as_ref().is_some_and(|h| !h.zones.is_empty());

    if all_have(node_hints) && any_for_us(EndpointChoice::HintedForNode) {
        EndpointChoice::HintedForNode
    } else if all_have(zone_hints) && any_for_us(EndpointChoice::HintedForZone) {
        EndpointChoice::HintedForZone
    } else {
        EndpointChoice::Ready
    }
}

fn preferred_by(choice: EndpointChoice, endpoint: &Endpoint, place: &Place<'_>) -> bool {
    let hints = endpoint.hints.as_ref();
    match choice {
        EndpointChoice::HintedForNode => hints.is_some_and(|h| h.nodes.contains(place.node)),
        EndpointChoice::HintedForZone => {
            hints.is_some_and(|h| h.zones.iter().any(|zone| Some(&**zone) == place.zone))
        }
        EndpointChoice::Ready
        | EndpointChoice::ReadyOnNode
        | EndpointChoice::ServingTerminating
        | EndpointChoice::ServingTerminatingOnNode => true,
    }
}

fn on_node(endpoint: &Endpoint, place: &Place<'_>) -> bool {
    endpoint.node.as_ref() == Some(place.node)
}

type Tier<'a> = (EndpointChoice, &'a dyn Fn(&Endpoint) -> bool);

fn first_not_empty(
    candidates: &BTreeMap<SocketAddr, &Endpoint>,
    place: &Place<'_>,
    tiers: &[Tier<'_>],
) -> Option<(Arc<[PortalEndpoint]>, EndpointChoice)> {
    tiers.iter().find_map(|(choice, admits)| {
        let chosen: Arc<[PortalEndpoint]> = candidates
            .iter()
            .filter(|(_, endpoint)| admits(endpoint))
            .map(|(address, endpoint)| PortalEndpoint {
                address: *address,
                node: endpoint.node.clone(),
                way: place.way(endpoint.node.as_ref(), address.ip()),
            })
            .collect();
        (!chosen.is_empty()).then_some((chosen, *choice))
    })
}

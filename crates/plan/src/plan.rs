//! The function from catalog, reachability and policy to plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, Protocol, Service, ServicePort, ServicePortName};

use crate::datapath::datapath;
use crate::topology::{Place, is_dialable, usable_endpoints};
use crate::{Frontend, LeftAlone, Policy, Portal, Reachability, ServicePortPlan, Target, filter};

/// What this node does about every service port of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sorted by name.
    ports: Vec<Arc<ServicePortPlan>>,
}

impl Plan {
    /// Every service port, sorted by name; those left alone too, with their reason.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<ServicePortPlan>> {
        self.ports.iter()
    }

    /// What is planned for one service port.
    #[must_use]
    pub fn port(&self, name: &ServicePortName) -> Option<&Arc<ServicePortPlan>> {
        let place = self.ports.binary_search_by(|port| port.name.cmp(name));
        self.ports.get(place.ok()?)
    }

    /// The portals that get a rule of ours, with the port that each belongs to. No
    /// two of them have the same frontend.
    pub fn intercepted(&self) -> impl Iterator<Item = (&Arc<ServicePortPlan>, &Portal)> {
        self.ports.iter().flat_map(|port| {
            port.portals
                .iter()
                .filter(|portal| match portal.target {
                    Target::Forward { .. } | Target::Refuse(_) => true,
                    Target::LeaveAlone(_) => false,
                })
                .map(move |portal| (port, portal))
        })
    }
}

/// Decides about every service port of `catalog`. Pure: equal arguments give equal
/// plans, in whatever order the catalog came to be.
#[must_use]
pub fn plan(catalog: &Catalog, reachability: &Reachability, policy: &Policy) -> Plan {
    let mut planning = Planning::new(catalog, reachability, policy);
    for service in catalog.services() {
        planning.decide(service);
    }
    planning.into_plan()
}

/// A plan with all that it was made of.
#[derive(Clone, Copy, Debug)]
pub struct Earlier<'a> {
    /// What the cluster said.
    pub catalog: &'a Catalog,
    /// Which nodes were reached how.
    pub reachability: &'a Reachability,
    /// What the operator had decided.
    pub policy: &'a Policy,
    /// What followed from these.
    pub plan: &'a Plan,
}

/// The plan that [`plan()`] would make, which shares with an earlier one whatever is certainly
/// the same: where one Service of many changed, or one node became a peer, nearly nothing is
/// decided or stored anew.
#[must_use]
pub fn plan_since(
    catalog: &Catalog,
    reachability: &Reachability,
    policy: &Policy,
    earlier: Earlier<'_>,
) -> Plan {
    let mut planning = Planning::new(catalog, reachability, policy);
    let earlier_place = Place::of(earlier.catalog, earlier.reachability, policy);
    if policy != earlier.policy || planning.place.zone != earlier_place.zone {
        return plan(catalog, reachability, policy);
    }
    let same_ways = reachability == earlier.reachability;
    let mut known = earlier.plan.ports.as_slice();
    for (service, is_same) in catalog.services_since(earlier.catalog) {
        let of_service = advance_to(&mut known, service);
        let is_same = is_same && (same_ways || planning.has_ways_of(of_service));
        if !(is_same && planning.keep(of_service)) {
            planning.decide(service);
        }
    }
    planning.into_plan()
}

/// Cuts off what comes before the ports of `service`, and hands those over.
fn advance_to<'p>(
    ports: &mut &'p [Arc<ServicePortPlan>],
    service: &Service,
) -> &'p [Arc<ServicePortPlan>] {
    while let Some((first, rest)) = ports.split_first()
        && first.name.service < service.name
    {
        *ports = rest;
    }
    let of_service = ports
        .iter()
        .take_while(|port| port.name.service == service.name)
        .count();
    let (own, rest) = ports.split_at(of_service);
    *ports = rest;
    own
}

/// A plan in the making. Services come in the order of their names.
struct Planning<'a> {
    catalog: &'a Catalog,
    policy: &'a Policy,
    place: Place<'a>,
    taken: BTreeMap<Frontend, ServicePortName>,
    ports: Vec<Arc<ServicePortPlan>>,
}

impl<'a> Planning<'a> {
    fn new(catalog: &'a Catalog, reachability: &'a Reachability, policy: &'a Policy) -> Self {
        Self {
            catalog,
            policy,
            place: Place::of(catalog, reachability, policy),
            taken: BTreeMap::new(),
            ports: Vec::new(),
        }
    }

    fn into_plan(self) -> Plan {
        Plan { ports: self.ports }
    }

    /// Whether the endpoints of ports that were decided about earlier are still reached by
    /// the same ways. Nothing else of a plan depends on these.
    fn has_ways_of(&self, of_service: &[Arc<ServicePortPlan>]) -> bool {
        of_service
            .iter()
            .flat_map(|port| &port.portals)
            .all(|portal| match &portal.target {
                Target::Forward { endpoints, .. } => endpoints.iter().all(|endpoint| {
                    endpoint.way
                        == self
                            .place
                            .way(endpoint.node.as_ref(), endpoint.address.ip())
                }),
                Target::Refuse(_) | Target::LeaveAlone(_) => true,
            })
    }

    /// Takes over what was decided about a Service that has not changed, unless other
    /// Services have a say: whether it was, or is now, about who has a frontend.
    fn keep(&mut self, of_service: &[Arc<ServicePortPlan>]) -> bool {
        let portals = || of_service.iter().flat_map(|port| &port.portals);
        let depends_on_others = portals().any(|portal| {
            matches!(
                portal.target,
                Target::LeaveAlone(LeftAlone::FrontendTaken(_))
            ) || self.taken.contains_key(&portal.frontend)
        });
        if depends_on_others {
            return false;
        }
        for port in of_service {
            for portal in &port.portals {
                match portal.target {
                    Target::Forward { .. } | Target::Refuse(_) => {
                        self.taken.insert(portal.frontend, port.name.clone());
                    }
                    Target::LeaveAlone(_) => {}
                }
            }
        }
        self.ports.extend(of_service.iter().cloned());
        true
    }

    /// Decides about all ports of a Service.
    fn decide(&mut self, service: &Service) {
        let left_alone = filter::left_alone(service, self.policy.filter);
        let first = self.ports.len();
        for port in &service.ports {
            let name = service.port_name(port);
            if self.ports[first..].iter().any(|known| known.name == name) {
                // Two ports of one name and protocol are no valid Service; the first stays.
                continue;
            }
            let left_alone = left_alone
                .clone()
                .or_else(|| (port.protocol == Protocol::Sctp).then_some(LeftAlone::Sctp));
            let portals = match left_alone {
                Some(_) => Vec::new(),
                None => self.portals(service, port),
            };
            self.ports.push(Arc::new(ServicePortPlan {
                name,
                affinity: service.session_affinity,
                left_alone,
                portals,
            }));
        }
        self.ports[first..].sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn portals(&mut self, service: &Service, port: &ServicePort) -> Vec<Portal> {
        service
            .cluster_ips
            .iter()
            .map(|&ip| {
                let frontend = Frontend {
                    ip,
                    protocol: port.protocol,
                    port: port.port,
                };
                let target = match frontend_left_alone(frontend, self.policy, &self.taken) {
                    Some(reason) => Target::LeaveAlone(reason),
                    None => {
                        self.taken.insert(frontend, service.port_name(port));
                        match usable_endpoints(self.catalog, service, port, ip, &self.place) {
                            Ok((endpoints, choice)) => Target::Forward {
                                datapath: datapath(
                                    &endpoints,
                                    service.session_affinity,
                                    self.policy,
                                ),
                                endpoints,
                                choice,
                            },
                            Err(refusal) => Target::Refuse(refusal),
                        }
                    }
                };
                Portal { frontend, target }
            })
            .collect()
    }
}

fn frontend_left_alone(
    frontend: Frontend,
    policy: &Policy,
    taken: &BTreeMap<Frontend, ServicePortName>,
) -> Option<LeftAlone> {
    if !is_dialable(frontend.ip) {
        return Some(LeftAlone::UnusableClusterIp);
    }
    match frontend.ip {
        IpAddr::V4(_) if !policy.ipv4 => Some(LeftAlone::NoIpv4),
        IpAddr::V6(_) if !policy.ipv6 => Some(LeftAlone::NoIpv6),
        IpAddr::V4(_) | IpAddr::V6(_) => taken
            .get(&frontend)
            .map(|by| LeftAlone::FrontendTaken(Box::new(by.clone()))),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "plan_properties.rs"]
mod properties;

#[cfg(test)]
#[path = "plan_datapath_tests.rs"]
mod datapath_tests;

#[cfg(test)]
#[path = "plan_way_tests.rs"]
mod way_tests;

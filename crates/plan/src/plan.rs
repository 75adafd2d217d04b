//! The function from catalog and policy to plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, Protocol, Service, ServicePort, ServicePortName};

use crate::topology::{Place, is_dialable, usable_endpoints};
use crate::{Frontend, LeftAlone, Policy, Portal, ServicePortPlan, Target, filter};

/// What this node does about every service port of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    ports: BTreeMap<ServicePortName, Arc<ServicePortPlan>>,
}

impl Plan {
    /// Every service port, sorted by name; those left alone too, with their reason.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<ServicePortPlan>> {
        self.ports.values()
    }

    /// What is planned for one service port.
    #[must_use]
    pub fn port(&self, name: &ServicePortName) -> Option<&Arc<ServicePortPlan>> {
        self.ports.get(name)
    }

    /// The portals that get a rule of ours, with the port that each belongs to. No
    /// two of them have the same frontend.
    pub fn intercepted(&self) -> impl Iterator<Item = (&Arc<ServicePortPlan>, &Portal)> {
        self.ports.values().flat_map(|port| {
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
pub fn plan(catalog: &Catalog, policy: &Policy) -> Plan {
    let place = Place {
        node: &policy.node,
        zone: catalog
            .node(&policy.node)
            .and_then(|node| node.zone.as_deref()),
    };
    let mut taken: BTreeMap<Frontend, ServicePortName> = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for service in catalog.services() {
        let left_alone = filter::left_alone(service, policy.filter);
        for port in &service.ports {
            let name = service.port_name(port);
            if ports.contains_key(&name) {
                // Two ports of one name and protocol are no valid Service; the first stays.
                continue;
            }
            let left_alone = left_alone
                .clone()
                .or_else(|| (port.protocol == Protocol::Sctp).then_some(LeftAlone::Sctp));
            let portals = match left_alone {
                Some(_) => Vec::new(),
                None => portals(catalog, policy, &place, service, port, &mut taken),
            };
            let planned = ServicePortPlan {
                name: name.clone(),
                affinity: service.session_affinity,
                left_alone,
                portals,
            };
            ports.insert(name, Arc::new(planned));
        }
    }
    Plan { ports }
}

fn portals(
    catalog: &Catalog,
    policy: &Policy,
    place: &Place<'_>,
    service: &Service,
    port: &ServicePort,
    taken: &mut BTreeMap<Frontend, ServicePortName>,
) -> Vec<Portal> {
    service
        .cluster_ips
        .iter()
        .map(|&ip| {
            let frontend = Frontend {
                ip,
                protocol: port.protocol,
                port: port.port,
            };
            let target = match frontend_left_alone(frontend, policy, taken) {
                Some(reason) => Target::LeaveAlone(reason),
                None => {
                    taken.insert(frontend, service.port_name(port));
                    match usable_endpoints(catalog, service, port, ip, place) {
                        Ok((endpoints, choice)) => Target::Forward { endpoints, choice },
                        Err(refusal) => Target::Refuse(refusal),
                    }
                }
            };
            Portal { frontend, target }
        })
        .collect()
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
            .map(|by| LeftAlone::FrontendTaken(by.clone())),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

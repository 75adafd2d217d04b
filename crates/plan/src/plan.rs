//! The function from catalog, reachability and policy to plan.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{
    Catalog, ObjectName, Protocol, Service, ServicePort, ServicePortName, SharedMap,
};

use crate::datapath::datapath;
use crate::topology::{Place, is_dialable, usable_endpoints};
use crate::{Frontend, LeftAlone, Policy, Portal, Reachability, ServicePortPlan, Target, filter};

/// What this node does about every service port of the cluster.
///
/// Copies share their content, and so does a plan with the one that it was made
/// [since](plan_since).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    ports: SharedMap<ServicePortName, Arc<ServicePortPlan>>,
    /// Whose rule of ours a frontend gets.
    owners: SharedMap<Frontend, Arc<ServicePortPlan>>,
    /// Services of which another one has a frontend.
    rivals: Arc<BTreeSet<ObjectName>>,
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
        self.ports().flat_map(|port| {
            let intercepted = port.intercepted();
            intercepted.map(move |portal| (port, portal))
        })
    }

    /// The portal that gets a rule of ours there, with the port that it belongs to.
    #[must_use]
    pub fn intercepted_at(&self, frontend: Frontend) -> Option<(&Arc<ServicePortPlan>, &Portal)> {
        let port = self.owners.get(&frontend)?;
        let mut portals = port.intercepted();
        Some((port, portals.find(|portal| portal.frontend == frontend)?))
    }

    /// The frontends that get a rule of ours in one of two plans, and of whose port not the same
    /// is planned in both. It costs what changed, if this plan was made [since](plan_since) that
    /// one.
    pub fn frontends_changed_since<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = Frontend> + use<'a> {
        let differing = earlier.owners.differing(&self.owners);
        differing.map(|(frontend, _, _)| *frontend)
    }

    /// The ports that are not planned as they were in `earlier`: what was planned, and what is
    /// now. It costs what changed, if this plan was made [since](plan_since) that one.
    pub fn ports_changed_since<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = (Option<&'a ServicePortPlan>, Option<&'a ServicePortPlan>)> {
        let differing = earlier.ports.differing(&self.ports);
        differing.map(|(_, before, now)| (before.map(|port| &**port), now.map(|port| &**port)))
    }

    /// The ports of a Service.
    fn ports_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<ServicePortPlan>> {
        let first = ServicePortName {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        let ports: Vec<_> = self
            .ports
            .starting_at(&first)
            .map(|(_, port)| port)
            .take_while(|port| port.name.service == *service)
            .collect();
        ports.into_iter()
    }
}

/// Decides about every service port of `catalog`. Pure: equal arguments give equal
/// plans, in whatever order the catalog came to be.
#[must_use]
pub fn plan(catalog: &Catalog, reachability: &Reachability, policy: &Policy) -> Plan {
    let place = Place::of(catalog, reachability, policy);
    let mut planning = Planning::beginning(catalog, policy, place, Plan::default());
    for service in catalog.services() {
        planning.decide(service, &Plan::default());
    }
    planning.plan
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

/// The plan that [`plan()`] would make, which goes on from an earlier one: only Services that
/// changed, or have a frontend in common with such, are decided about. So one Service of many, or
/// one node that became a peer, costs next to nothing.
#[must_use]
pub fn plan_since(
    catalog: &Catalog,
    reachability: &Reachability,
    policy: &Policy,
    earlier: Earlier<'_>,
) -> Plan {
    let place = Place::of(catalog, reachability, policy);
    let earlier_place = Place::of(earlier.catalog, earlier.reachability, policy);
    if policy != earlier.policy || place.zone != earlier_place.zone {
        return plan(catalog, reachability, policy);
    }
    let mut changed = catalog.services_changed_since(earlier.catalog);
    if reachability != earlier.reachability {
        let others = earlier
            .plan
            .ports()
            .filter(|port| !has_ways_of(port, &place));
        changed.extend(others.map(|port| &port.name.service));
    }
    let rivals = rivals(&changed, catalog, earlier.plan);
    changed.extend(&rivals);

    let mut planning = Planning::beginning(catalog, policy, place, earlier.plan.clone());
    for service in &changed {
        planning.forget(service);
    }
    for service in changed {
        if let Some(service) = catalog.service(service) {
            planning.decide(service, earlier.plan);
        }
    }
    planning.plan
}

/// Whether the endpoints of a port that was decided about earlier are still reached by the same
/// ways. Nothing else of a plan depends on these.
fn has_ways_of(port: &ServicePortPlan, place: &Place<'_>) -> bool {
    port.portals.iter().all(|portal| match &portal.target {
        Target::Forward { endpoints, .. } => endpoints.iter().all(|endpoint| {
            endpoint.way == place.way(endpoint.node.as_ref(), endpoint.address.ip())
        }),
        Target::Refuse(_) | Target::LeaveAlone(_) => true,
    })
}

/// Services that have, or would like to have, a frontend that one of those which changed had or
/// may want now. Who gets it is decided among all of them; about other frontends, nothing that
/// changed has a say.
fn rivals(changed: &BTreeSet<&ObjectName>, catalog: &Catalog, earlier: &Plan) -> Vec<ObjectName> {
    let mut disputed = BTreeSet::new();
    for name in changed {
        let portals = earlier.ports_of(name).flat_map(|port| &port.portals);
        disputed.extend(portals.map(|portal| portal.frontend));
        if let Some(service) = catalog.service(name) {
            disputed.extend(service.ports.iter().flat_map(|port| {
                let ips = service.cluster_ips.iter();
                ips.map(|&ip| frontend_of(ip, port))
            }));
        }
    }
    let owners = disputed.iter().filter_map(|at| earlier.owners.get(at));
    let owners = owners.map(|port| port.name.service.clone());
    let losers = earlier.rivals.iter().filter(|name| {
        let mut portals = earlier.ports_of(name).flat_map(|port| &port.portals);
        portals.any(|portal| disputed.contains(&portal.frontend))
    });
    owners.chain(losers.cloned()).collect()
}

fn frontend_of(ip: IpAddr, port: &ServicePort) -> Frontend {
    Frontend {
        ip,
        protocol: port.protocol,
        port: port.port,
    }
}

/// A plan in the making. Of Services that dispute a frontend, the one whose name comes first is
/// decided about first.
struct Planning<'a> {
    catalog: &'a Catalog,
    policy: &'a Policy,
    place: Place<'a>,
    plan: Plan,
}

impl<'a> Planning<'a> {
    fn beginning(catalog: &'a Catalog, policy: &'a Policy, place: Place<'a>, plan: Plan) -> Self {
        Self {
            catalog,
            policy,
            place,
            plan,
        }
    }

    /// Takes out what was decided about a Service.
    fn forget(&mut self, service: &ObjectName) {
        let ports: Vec<_> = self.plan.ports_of(service).cloned().collect();
        for port in ports {
            self.plan.ports.remove(&port.name);
            for portal in &port.portals {
                let owner = self.plan.owners.get(&portal.frontend);
                if owner.is_some_and(|owner| owner.name == port.name) {
                    self.plan.owners.remove(&portal.frontend);
                }
            }
        }
        if self.plan.rivals.contains(service) {
            Arc::make_mut(&mut self.plan.rivals).remove(service);
        }
    }

    /// Decides about all ports of a Service. What comes out as it was is shared with `earlier`.
    fn decide(&mut self, service: &Service, earlier: &Plan) {
        let left_alone = filter::left_alone(service, self.policy.filter);
        for port in &service.ports {
            let name = service.port_name(port);
            if self.plan.ports.contains_key(&name) {
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
            let planned = ServicePortPlan {
                name: name.clone(),
                affinity: service.session_affinity,
                left_alone,
                portals,
            };
            let planned = match earlier.port(&name) {
                Some(known) if **known == planned => Arc::clone(known),
                Some(_) | None => Arc::new(planned),
            };
            self.put(&planned);
        }
    }

    fn put(&mut self, port: &Arc<ServicePortPlan>) {
        for portal in &port.portals {
            match &portal.target {
                Target::Forward { .. } | Target::Refuse(_) => {
                    self.plan.owners.insert(portal.frontend, Arc::clone(port));
                }
                Target::LeaveAlone(LeftAlone::FrontendTaken(_)) => {
                    Arc::make_mut(&mut self.plan.rivals).insert(port.name.service.clone());
                }
                Target::LeaveAlone(_) => {}
            }
        }
        self.plan.ports.insert(port.name.clone(), Arc::clone(port));
    }

    fn portals(&self, service: &Service, port: &ServicePort) -> Vec<Portal> {
        let mut portals: Vec<Portal> = Vec::with_capacity(service.cluster_ips.len());
        for &ip in &service.cluster_ips {
            let frontend = frontend_of(ip, port);
            let target = match self.left_alone(frontend, &portals, service, port) {
                Some(reason) => Target::LeaveAlone(reason),
                None => match usable_endpoints(self.catalog, service, port, ip, &self.place) {
                    Ok((endpoints, choice)) => Target::Forward {
                        datapath: datapath(&endpoints, service.session_affinity, self.policy),
                        endpoints,
                        choice,
                    },
                    Err(refusal) => Target::Refuse(refusal),
                },
            };
            portals.push(Portal { frontend, target });
        }
        portals
    }

    /// Why a portal of a port has no rule of ours; `before` are those of the port that were
    /// decided about.
    fn left_alone(
        &self,
        frontend: Frontend,
        before: &[Portal],
        service: &Service,
        port: &ServicePort,
    ) -> Option<LeftAlone> {
        if !is_dialable(frontend.ip) {
            return Some(LeftAlone::UnusableClusterIp);
        }
        match frontend.ip {
            IpAddr::V4(_) if !self.policy.ipv4 => return Some(LeftAlone::NoIpv4),
            IpAddr::V6(_) if !self.policy.ipv6 => return Some(LeftAlone::NoIpv6),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        let taken_by = match self.plan.owners.get(&frontend) {
            Some(owner) => owner.name.clone(),
            None if before.iter().any(|portal| portal.frontend == frontend) => {
                service.port_name(port)
            }
            None => return None,
        };
        Some(LeftAlone::FrontendTaken(Box::new(taken_by)))
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

//! The running agent's part of an explanation: what it planned and why. Pure.

use std::net::IpAddr;
use std::time::Duration;

use edgemesh_catalog::{
    Catalog, EndpointState, NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort,
};
use edgemesh_forward::LeftOut;
use edgemesh_plan::{
    EndpointReason, Frontend, Portal, ServicePortPlan, Target, Unused, Way, WayReason,
    endpoint_reasons,
};
use serde::{Deserialize, Serialize};

use super::datapath::{self, DatapathExplained, TakenBy};
use super::query::Query;
use crate::config::near_matches;
use crate::in_force::Planned;
use crate::moment::length;

/// As many Services are explained at a time.
const MOST_SERVICES: usize = 20;

/// As many names are offered for one that is not there.
const MOST_NEAR: usize = 3;

/// What the agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentAnswer {
    /// Whether the agent has a plan; it has none until its catalog is complete.
    pub(crate) planned: bool,
    /// The Services that were meant, sorted by name.
    pub(crate) services: Vec<ServiceExplained>,
    /// How many more were meant.
    pub(crate) more: usize,
    /// Names that are near to one that is not there.
    pub(crate) near: Vec<String>,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceExplained {
    /// `namespace/name`.
    pub(crate) name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub(crate) kind: String,
    /// Its ClusterIPs.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// Why it is left alone as a whole: filtered, headless and the like.
    pub(crate) left_alone: Option<String>,
    /// The ports that were meant, in the order of the object.
    pub(crate) ports: Vec<PortExplained>,
    /// Ports that were not meant.
    pub(crate) other_ports: Vec<String>,
}

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortExplained {
    /// `namespace/name:port`, as rules name it.
    pub(crate) name: String,
    /// `tcp`, `udp` or `sctp`.
    pub(crate) protocol: String,
    /// Port on the ClusterIPs.
    pub(crate) port: u16,
    /// Why it is left alone, if it is.
    pub(crate) left_alone: Option<String>,
    /// How long a client keeps its endpoint.
    pub(crate) affinity_seconds: Option<u64>,
    /// One per ClusterIP.
    pub(crate) portals: Vec<PortalExplained>,
}

/// One ClusterIP of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortalExplained {
    /// The ClusterIP.
    pub(crate) ip: IpAddr,
    /// What the agent means to do.
    pub(crate) decision: Decision,
    /// Why.
    pub(crate) why: String,
    /// Who takes connections to endpoints; none where nobody does.
    #[serde(default)]
    pub(crate) datapath: Option<DatapathExplained>,
    /// Every endpoint, the used ones first.
    pub(crate) endpoints: Vec<EndpointExplained>,
}

/// What the agent means to do with a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    /// Forward it to an endpoint.
    Forward,
    /// Refuse it.
    Refuse,
    /// Leave it alone.
    LeaveAlone,
    /// Forward it, but it can't now; so it is left to kube-proxy.
    Failed,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointExplained {
    /// Address and port.
    pub(crate) address: String,
    /// Its node; none outside the cluster.
    pub(crate) node: Option<String>,
    /// Whether that is this node.
    pub(crate) here: bool,
    /// `ready`, `terminating` or `not ready`.
    pub(crate) state: String,
    /// Whether the portal leads to it.
    pub(crate) used: bool,
    /// Why not.
    pub(crate) why_not: Option<String>,
    /// That it failed, if it did and has not answered since.
    pub(crate) left_out: Option<String>,
    /// By which way it is reached.
    pub(crate) path: String,
    /// Who takes connections there; none where nobody does.
    #[serde(default)]
    pub(crate) taken_by: Option<TakenBy>,
}

/// Which endpoints of a portal failed.
pub(crate) type AskHealth<'a> = dyn Fn(&Frontend) -> Vec<LeftOut> + 'a;

/// What is planned for what `query` names.
pub(crate) fn answer(
    query: &Query,
    planned: Option<&Planned>,
    health: &AskHealth<'_>,
) -> AgentAnswer {
    let Some(planned) = planned else {
        return AgentAnswer::default();
    };
    let mut meant = planned
        .catalog
        .services()
        .filter(|service| means_service(query, service));
    let services: Vec<ServiceExplained> = meant
        .by_ref()
        .take(MOST_SERVICES)
        .map(|service| explain_service(query, service, planned, health))
        .collect();
    AgentAnswer {
        planned: true,
        more: meant.count(),
        near: if services.is_empty() {
            near(query, &planned.catalog)
        } else {
            Vec::new()
        },
        services,
    }
}

fn means_service(query: &Query, service: &Service) -> bool {
    match query {
        Query::Name {
            namespace,
            service: name,
            ..
        } => {
            service.name.name() == name
                && namespace
                    .as_ref()
                    .is_none_or(|namespace| service.name.namespace() == namespace)
        }
        Query::Address { ip, .. } => service.cluster_ips.contains(ip),
    }
}

fn near(query: &Query, catalog: &Catalog) -> Vec<String> {
    let names = || catalog.services().map(|service| &service.name);
    match query {
        Query::Address { .. } => Vec::new(),
        Query::Name {
            namespace: None,
            service,
            ..
        } => {
            let found = near_matches(service, names().map(ObjectName::name), MOST_NEAR);
            names()
                .filter(|name| found.contains(&name.name()))
                .take(MOST_NEAR)
                .map(ToString::to_string)
                .collect()
        }
        Query::Name {
            namespace: Some(namespace),
            service,
            ..
        } => {
            // The right name in another namespace is the likeliest mistake.
            let elsewhere = names().filter(|name| name.name() == service);
            let mut found: Vec<String> = elsewhere.map(ToString::to_string).collect();
            let all: Vec<String> = names().map(ToString::to_string).collect();
            let wanted = format!("{namespace}/{service}");
            let similar = near_matches(&wanted, all.iter().map(String::as_str), MOST_NEAR);
            found.extend(similar.into_iter().map(str::to_owned));
            found.sort();
            found.dedup();
            found.truncate(MOST_NEAR);
            found
        }
    }
}

fn explain_service(
    query: &Query,
    service: &Service,
    planned: &Planned,
    health: &AskHealth<'_>,
) -> ServiceExplained {
    let (meant, others): (Vec<_>, Vec<_>) = service
        .ports
        .iter()
        .partition(|port| query.means_port(&port.name, port.port));
    let plan_of = |port: &ServicePort| planned.plan.port(&service.port_name(port));
    ServiceExplained {
        name: service.name.to_string(),
        kind: kind(service.kind).to_owned(),
        cluster_ips: service.cluster_ips.clone(),
        left_alone: service
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Sctp)
            .find_map(|port| plan_of(port)?.left_alone.as_ref())
            .map(ToString::to_string)
            .or_else(|| {
                (service.kind == ServiceKind::ExternalName)
                    .then(|| edgemesh_plan::LeftAlone::ExternalName.to_string())
            }),
        ports: meant
            .into_iter()
            .filter_map(|port| {
                Some(explain_port(
                    query,
                    service,
                    port,
                    plan_of(port)?,
                    planned,
                    health,
                ))
            })
            .collect(),
        other_ports: others
            .into_iter()
            .map(|port| service.port_name(port).to_string())
            .collect(),
    }
}

fn kind(kind: ServiceKind) -> &'static str {
    match kind {
        ServiceKind::ClusterIp => "ClusterIP",
        ServiceKind::NodePort => "NodePort",
        ServiceKind::LoadBalancer => "LoadBalancer",
        ServiceKind::ExternalName => "ExternalName",
    }
}

fn explain_port(
    query: &Query,
    service: &Service,
    port: &ServicePort,
    plan: &ServicePortPlan,
    planned: &Planned,
    health: &AskHealth<'_>,
) -> PortExplained {
    let meant = |ip: &IpAddr| match query {
        Query::Name { .. } => true,
        Query::Address { ip: wanted, .. } => ip == wanted,
    };
    let portals = service
        .cluster_ips
        .iter()
        .filter(|ip| meant(ip))
        .map(|&ip| {
            let portal = plan.portals.iter().find(|portal| portal.frontend.ip == ip);
            explain_portal(ip, service, port, plan, portal, planned, health)
        })
        .collect();
    PortExplained {
        name: plan.name.to_string(),
        protocol: port.protocol.to_string(),
        port: port.port,
        left_alone: plan.left_alone.as_ref().map(ToString::to_string),
        affinity_seconds: plan.affinity.map(|time| time.as_secs()),
        portals,
    }
}

fn explain_portal(
    ip: IpAddr,
    service: &Service,
    port: &ServicePort,
    plan: &ServicePortPlan,
    portal: Option<&Portal>,
    planned: &Planned,
    health: &AskHealth<'_>,
) -> PortalExplained {
    let frontend = Frontend {
        ip,
        protocol: port.protocol,
        port: port.port,
    };
    let (decision, why) = decision(frontend, plan, portal, planned);
    let left_out = health(&frontend);
    let reasons = endpoint_reasons(
        &planned.catalog,
        &planned.reachability,
        &planned.policy,
        service,
        port,
        ip,
    );
    let mut endpoints: Vec<EndpointExplained> = reasons
        .iter()
        // Those of the other family belong to the Service's other address, if it has one.
        .filter(|reason| {
            reason.unused != Some(Unused::OtherFamily) || service.cluster_ips.len() == 1
        })
        .map(|reason| explain_endpoint(reason, portal, &left_out))
        .collect();
    endpoints.sort_by_key(|endpoint| !endpoint.used);
    PortalExplained {
        ip,
        decision,
        why,
        datapath: portal.and_then(|portal| datapath::explain(portal, &planned.policy.host)),
        endpoints,
    }
}

fn decision(
    frontend: Frontend,
    plan: &ServicePortPlan,
    portal: Option<&Portal>,
    planned: &Planned,
) -> (Decision, String) {
    if let Some(failure) = planned.destinations.failed.get(&frontend) {
        return (Decision::Failed, failure.clone());
    }
    match portal.map(|portal| &portal.target) {
        Some(Target::Forward { choice, .. }) => (Decision::Forward, choice.to_string()),
        Some(Target::Refuse(refusal)) => (Decision::Refuse, refusal.to_string()),
        Some(Target::LeaveAlone(reason)) => (Decision::LeaveAlone, reason.to_string()),
        None => (
            Decision::LeaveAlone,
            plan.left_alone
                .as_ref()
                .map_or_else(|| "not planned".to_owned(), ToString::to_string),
        ),
    }
}

fn explain_endpoint(
    reason: &EndpointReason,
    portal: Option<&Portal>,
    left_out: &[LeftOut],
) -> EndpointExplained {
    let here = reason.way == WayReason::OwnNode;
    EndpointExplained {
        address: reason.address.to_string(),
        node: reason.node.as_ref().map(ToString::to_string),
        here,
        state: match reason.state {
            EndpointState::Ready => "ready",
            EndpointState::ServingTerminating => "terminating",
            EndpointState::NotReady => "not ready",
        }
        .to_owned(),
        used: reason.unused.is_none(),
        why_not: reason.unused.map(|why| why.to_string()),
        left_out: left_out
            .iter()
            .find(|left_out| left_out.endpoint == reason.address)
            .map(in_words),
        path: path(reason.way, reason.node.as_ref()),
        taken_by: portal
            .filter(|_| reason.unused.is_none())
            .and_then(|portal| datapath::taken_by(portal, reason.address)),
    }
}

/// By which way an endpoint on `node` is reached, and why.
fn path(reason: WayReason, node: Option<&NodeName>) -> String {
    match (reason.way(), node) {
        (Way::Tunnel, Some(node)) => format!("through the tunnel to node {node}: {reason}"),
        (way, _) => format!("{way}: {reason}"),
    }
}

fn in_words(left_out: &LeftOut) -> String {
    let failures = match left_out.failures {
        1 => "1 failure".to_owned(),
        n => format!("{n} failures in a row"),
    };
    if left_out.remaining.is_zero() {
        format!("{failures}, the next connection tries it")
    } else {
        let remaining = Duration::from_secs(left_out.remaining.as_millis().div_ceil(1000) as u64);
        format!("{failures}, tried again in {}", length(remaining))
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;

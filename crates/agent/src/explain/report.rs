//! An explanation as a whole: what the agent planned beside what the kernel does. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use edgemesh_rules::OwnChain;
use serde::{Deserialize, Serialize};

use super::answer::{
    AgentAnswer, Decision, EndpointExplained, PortExplained, PortalExplained, ServiceExplained,
};
use super::datapath::DatapathExplained;
use super::judge::verdict;
use super::kernel::Kernel;
use super::query::Query;
use super::verdict::{Agent, Verdict};
use crate::config::near_matches;

/// As many names are offered for one that is not there.
const MOST_NEAR: usize = 3;

/// The form of `explain --output json`. Fields may be added, none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExplainReport {
    /// What was asked about.
    pub(crate) query: String,
    /// Why the agent's plan is not in here: it does not run, or has none yet.
    pub(crate) without_agent: Option<String>,
    /// The Services that were meant.
    pub(crate) services: Vec<ServiceReport>,
    /// How many more were meant.
    pub(crate) more: usize,
    /// Names that are near to one that is not there.
    pub(crate) near: Vec<String>,
    /// What could not be read from the kernel.
    pub(crate) problems: Vec<String>,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceReport {
    /// `namespace/name`.
    pub(crate) name: String,
    /// Its type; none where only the kernel's rules tell of it.
    pub(crate) kind: Option<String>,
    /// Its ClusterIPs.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// Why it is left alone as a whole.
    pub(crate) left_alone: Option<String>,
    /// Its ports that were meant.
    pub(crate) ports: Vec<PortReport>,
    /// Its other ports.
    pub(crate) other_ports: Vec<String>,
}

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortReport {
    /// `namespace/name:port`.
    pub(crate) name: String,
    /// `tcp`, `udp` or `sctp`.
    pub(crate) protocol: String,
    /// Port on the ClusterIPs.
    pub(crate) port: u16,
    /// Why it is left alone.
    pub(crate) left_alone: Option<String>,
    /// How long a client keeps its endpoint.
    pub(crate) affinity_seconds: Option<u64>,
    /// One per ClusterIP.
    pub(crate) portals: Vec<PortalReport>,
}

/// One ClusterIP of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortalReport {
    /// The ClusterIP.
    pub(crate) ip: IpAddr,
    /// What the agent means to do; none without an agent.
    pub(crate) decision: Option<Decision>,
    /// Why.
    pub(crate) why: Option<String>,
    /// Who takes connections to endpoints, by the agent's plan.
    #[serde(default)]
    pub(crate) datapath: Option<DatapathExplained>,
    /// Who handles a new connection: from pods, and from the host.
    pub(crate) handlers: Vec<Verdict>,
    /// The endpoints, as the agent knows them.
    pub(crate) endpoints: Vec<EndpointExplained>,
}

/// The portals of an answer, or else those that the kernel has for the query.
pub(crate) fn frontends(
    query: &Query,
    answer: Option<&AgentAnswer>,
    kernel: &Kernel,
) -> BTreeSet<Frontend> {
    services(query, answer, kernel)
        .iter()
        .flat_map(|service| &service.ports)
        .flat_map(|port| {
            port.portals
                .iter()
                .filter_map(|portal| frontend(port, portal))
        })
        .collect()
}

/// Puts both together. `without_agent` is why there is no answer.
pub(crate) fn report(
    query: &Query,
    answer: Option<&AgentAnswer>,
    without_agent: Option<String>,
    kernel: &Kernel,
) -> ExplainReport {
    let services = services(query, answer, kernel);
    let near = match answer.filter(|answer| answer.planned) {
        Some(answer) => answer.near.clone(),
        None if services.is_empty() => near(query, kernel),
        None => Vec::new(),
    };
    ExplainReport {
        query: query.to_string(),
        without_agent: without_agent.or_else(|| {
            let unplanned = answer.is_some_and(|answer| !answer.planned);
            unplanned.then(|| {
                "the agent runs, but has no plan yet: its catalog is not complete \
                 (`edgemesh-agent status` says why)"
                    .to_owned()
            })
        }),
        services: services
            .iter()
            .map(|service| service_report(service, answer.is_some(), kernel))
            .collect(),
        more: answer.map_or(0, |answer| answer.more),
        near,
        problems: kernel.problems.clone(),
    }
}

/// What the agent knows; where it knows nothing, what rules tell by their comments.
fn services(query: &Query, answer: Option<&AgentAnswer>, kernel: &Kernel) -> Vec<ServiceExplained> {
    match answer {
        Some(answer) if !answer.services.is_empty() => answer.services.clone(),
        Some(_) | None => from_rules(query, kernel),
    }
}

fn from_rules(query: &Query, kernel: &Kernel) -> Vec<ServiceExplained> {
    let mut services: BTreeMap<String, ServiceExplained> = BTreeMap::new();
    for (frontend, name) in kernel.portals() {
        let (service, port_name) = name.split_once(':').unwrap_or((&name, ""));
        if !means(query, service, port_name, &frontend) {
            continue;
        }
        let known = services
            .entry(service.to_owned())
            .or_insert_with(|| ServiceExplained {
                name: service.to_owned(),
                kind: String::new(),
                cluster_ips: Vec::new(),
                left_alone: None,
                ports: Vec::new(),
                other_ports: Vec::new(),
            });
        if !known.cluster_ips.contains(&frontend.ip) {
            known.cluster_ips.push(frontend.ip);
        }
        let portal = PortalExplained {
            ip: frontend.ip,
            decision: Decision::LeaveAlone,
            why: String::new(),
            datapath: None,
            endpoints: Vec::new(),
        };
        let protocol = frontend.protocol.to_string();
        let port = known
            .ports
            .iter_mut()
            .find(|port| port.port == frontend.port && port.protocol == protocol);
        match port {
            Some(port) => port.portals.push(portal),
            None => known.ports.push(PortExplained {
                name: name.clone(),
                protocol,
                port: frontend.port,
                left_alone: None,
                affinity_seconds: None,
                portals: vec![portal],
            }),
        }
    }
    services.into_values().collect()
}

fn means(query: &Query, service: &str, port_name: &str, frontend: &Frontend) -> bool {
    let named = match query {
        Query::Address { ip, .. } => frontend.ip == *ip,
        Query::Name {
            namespace,
            service: wanted,
            ..
        } => service.split_once('/').is_some_and(|(space, name)| {
            name == wanted && namespace.as_ref().is_none_or(|wanted| wanted == space)
        }),
    };
    named && query.means_port(port_name, frontend.port)
}

fn near(query: &Query, kernel: &Kernel) -> Vec<String> {
    let Query::Name {
        namespace, service, ..
    } = query
    else {
        return Vec::new();
    };
    let names: BTreeSet<String> = kernel
        .portals()
        .into_values()
        .map(|name| name.split(':').next().unwrap_or_default().to_owned())
        .collect();
    let wanted = format!("{}/{service}", namespace.as_deref().unwrap_or("default"));
    near_matches(&wanted, names.iter().map(String::as_str), MOST_NEAR)
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn service_report(service: &ServiceExplained, runs: bool, kernel: &Kernel) -> ServiceReport {
    // A Service that only rules tell of has no type.
    let known = !service.kind.is_empty();
    ServiceReport {
        name: service.name.clone(),
        kind: known.then(|| service.kind.clone()),
        cluster_ips: service.cluster_ips.clone(),
        left_alone: service.left_alone.clone(),
        ports: service
            .ports
            .iter()
            .map(|port| PortReport {
                name: port.name.clone(),
                protocol: port.protocol.clone(),
                port: port.port,
                left_alone: port.left_alone.clone(),
                affinity_seconds: port.affinity_seconds,
                portals: port
                    .portals
                    .iter()
                    .map(|portal| portal_report(port, portal, runs, known, kernel))
                    .collect(),
            })
            .collect(),
        other_ports: service.other_ports.clone(),
    }
}

fn portal_report(
    port: &PortExplained,
    portal: &PortalExplained,
    runs: bool,
    known: bool,
    kernel: &Kernel,
) -> PortalReport {
    let decision = known.then_some(portal.decision);
    let agent = if runs {
        Agent::Runs(decision)
    } else {
        Agent::Silent
    };
    let handlers = frontend(port, portal)
        .map(|frontend| {
            OwnChain::BOTH
                .map(|chain| verdict(chain, &frontend, kernel, agent))
                .to_vec()
        })
        .unwrap_or_default();
    PortalReport {
        ip: portal.ip,
        decision,
        why: known.then(|| portal.why.clone()),
        datapath: portal.datapath.clone(),
        handlers,
        endpoints: portal.endpoints.clone(),
    }
}

fn frontend(port: &PortExplained, portal: &PortalExplained) -> Option<Frontend> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.as_str() == port.protocol)?;
    Some(Frontend {
        ip: portal.ip,
        protocol,
        port: port.port,
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

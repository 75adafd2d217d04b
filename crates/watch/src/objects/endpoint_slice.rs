//! Reading a discovery.k8s.io/v1 EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{
    Endpoint, EndpointHints, EndpointPort, EndpointSlice, EndpointState, NodeName,
};
use serde_json::Value;

use super::field::{Field, Problem};
use super::{KnownNames, Reading, object_name, port_number, protocol};

/// Names the Service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Reads a slice. There is no object, and no problem either, when the slice belongs
/// to no Service or holds host names: kube-proxy leaves these out as well
/// (`pkg/proxy/endpointslicecache.go`).
pub(crate) fn read_endpoint_slice(value: &Value, names: &mut KnownNames) -> Reading<EndpointSlice> {
    let mut problems = Vec::new();
    let root = Field::root(value);
    let object = object_name(&root, names, &mut problems).and_then(|name| {
        let metadata = root.get("metadata");
        let service = metadata
            .get("labels")
            .get(SERVICE_LABEL)
            .text(&mut problems)
            .filter(|service| !service.is_empty())?;
        let family = family(&root, &mut problems)?;
        Some(EndpointSlice {
            name,
            service: names.get(service),
            ports: ports(&root.get("ports"), names, &mut problems),
            endpoints: endpoints(&root, family, names, &mut problems),
        })
    });
    Reading { object, problems }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    /// Not said: both are taken.
    Any,
}

impl Family {
    fn admits(self, ip: IpAddr) -> bool {
        match self {
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
            Family::Any => true,
        }
    }
}

fn family(root: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<Family> {
    let field = root.get("addressType");
    match field.text(problems) {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some("FQDN") => None,
        Some(other) => {
            problems.push(field.problem(format!(
                "{other:?} is none of IPv4, IPv6, FQDN; write one of these"
            )));
            None
        }
        None => {
            problems.push(field.problem("is missing; write IPv4 or IPv6".to_owned()));
            Some(Family::Any)
        }
    }
}

/// Ports of a slice or of a subset. A port without a number stands for all ports
/// (EndpointPort in the `discovery.k8s.io/v1` API) and cannot be dialled.
pub(super) fn ports(
    list: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<EndpointPort> {
    let mut ports = Vec::new();
    for port in list.items(problems) {
        let number = port_number(&port.get("port"), problems);
        let protocol = protocol(&port, problems);
        let name = port.get("name").text(problems).unwrap_or_default();
        if let (Some(number), Some(protocol)) = (number, protocol) {
            ports.push(EndpointPort {
                name: names.get(name),
                protocol,
                port: number,
            });
        }
    }
    ports.shrink_to_fit();
    ports
}

fn endpoints(
    root: &Field<'_, '_>,
    family: Family,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for endpoint in root.get("endpoints").items(problems) {
        if let Some(address) = address(&endpoint, family, problems) {
            endpoints.push(Endpoint {
                address,
                node: node(&endpoint, names, problems),
                state: state(&endpoint, problems),
                hints: hints(&endpoint, names, problems),
            });
        }
    }
    endpoints.shrink_to_fit();
    endpoints
}

fn address(
    endpoint: &Field<'_, '_>,
    family: Family,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let list = endpoint.get("addresses");
    let before = problems.len();
    let Some(first) = list.items(problems).next() else {
        if problems.len() == before {
            problems.push(list.problem("is empty; write one address".to_owned()));
        }
        return None;
    };
    let ip = first.ip(problems)?;
    if !family.admits(ip) {
        problems.push(first.problem(format!(
            "{ip} is not of the slice's addressType; put it into a slice of its own family"
        )));
        return None;
    }
    Some(ip)
}

/// The node of an endpoint of a slice, or of an address of a subset.
pub(super) fn node(
    endpoint: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<NodeName> {
    endpoint
        .get("nodeName")
        .text(problems)
        .filter(|name| !name.is_empty())
        .map(|name| NodeName::new(names.get(name)))
}

fn state(endpoint: &Field<'_, '_>, problems: &mut Vec<Problem>) -> EndpointState {
    let conditions = endpoint.get("conditions");
    conditions.is_mapping(problems);
    EndpointState::from_conditions(
        conditions.get("ready").flag(problems),
        conditions.get("serving").flag(problems),
        conditions.get("terminating").flag(problems),
    )
}

fn hints(
    endpoint: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<Box<EndpointHints>> {
    let hints = endpoint.get("hints");
    if !hints.is_mapping(problems) {
        return None;
    }
    let zones = hinted(&hints.get("forZones"), names, problems);
    let nodes: Vec<NodeName> = hinted(&hints.get("forNodes"), names, problems)
        .into_iter()
        .map(NodeName::new)
        .collect();
    (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(EndpointHints { zones, nodes }))
}

fn hinted(
    list: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<Arc<str>> {
    let mut hinted = Vec::new();
    for item in list.items(problems) {
        if let Some(name) = item.get("name").text(problems) {
            hinted.push(names.get(name));
        }
    }
    hinted
}

//! Reading a core/v1 Node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{Node, NodeName};
use ipnet::IpNet;
use serde_json::Value;

use super::field::{Field, Problem};
use super::{KnownNames, Reading, required_text};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Reads a Node.
pub(crate) fn read_node(value: &Value, names: &mut KnownNames) -> Reading<Node> {
    let mut problems = Vec::new();
    let root = Field::root(value);
    let metadata = root.get("metadata");
    let object = required_text(&metadata.get("name"), &mut problems).map(|name| Node {
        name: NodeName::new(names.get(name)),
        zone: metadata
            .get("labels")
            .get(ZONE_LABEL)
            .text(&mut problems)
            .map(|zone| names.get(zone)),
        pod_cidrs: pod_cidrs(&root.get("spec"), &mut problems),
        addresses: addresses(&root.get("status"), &mut problems),
        labels: labels(value, names),
    });
    Reading { object, problems }
}

/// The labels that somebody selects by. What is no text is none: the API server has seen to
/// that, and whoever writes manifests is told by the zone's label.
fn labels(node: &Value, names: &mut KnownNames) -> BTreeMap<Arc<str>, Arc<str>> {
    let Some(all) = node.pointer("/metadata/labels") else {
        return BTreeMap::new();
    };
    let wanted = names.node_labels();
    let known = wanted.iter().filter_map(|key| {
        let value = all.get(&**key)?.as_str()?;
        Some((Arc::clone(key), names.get(value)))
    });
    known.collect()
}

fn pod_cidrs(spec: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let single = spec.get("podCIDR");
    let list = spec.get("podCIDRs");
    let mut given: Vec<Field<'_, '_>> = list.items(problems).collect();
    if given.is_empty() {
        given.push(single);
    }
    let mut cidrs = Vec::new();
    for field in given {
        match field
            .text(problems)
            .filter(|text| !text.is_empty())
            .map(str::parse)
        {
            Some(Ok(cidr)) => cidrs.push(cidr),
            Some(Err(_)) => problems
                .push(field.problem("is not a CIDR; write one such as 10.244.1.0/24".to_owned())),
            None => {}
        }
    }
    cidrs
}

/// Addresses of the types that are IP addresses; host names are left out.
fn addresses(status: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for entry in status.get("addresses").items(problems) {
        let is_ip = matches!(
            entry.get("type").text(problems),
            Some("InternalIP" | "ExternalIP")
        );
        if is_ip
            && let Some(ip) = entry.get("address").ip(problems)
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    ips
}

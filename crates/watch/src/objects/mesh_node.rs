//! Reading an edgemesh.kubeedge.io/v1alpha1 `MeshNode`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::{
    KeySignature, MeshNode, NodeName, PreviousKey, ProbePlaces, PublicKey, RelayServer,
};
use http::Uri;
use ipnet::IpNet;
use serde_json::Value;

use super::field::{Field, Problem};
use super::{KnownNames, Reading, port_number, required_text};

/// Longest name of an object (kubernetes `k8s.io/apimachinery/pkg/util/validation`).
const LONGEST_NAME: usize = 253;

/// Longest `metadata.uid` that is kept; the API server's have 36 characters.
const LONGEST_UID: usize = 64;

/// Reads a `MeshNode`. There is no object when its name or its public key cannot be read: a
/// peer is nobody without them. The bounds hold here too, and not only in the schema of the
/// CRD: manifests have none, and whoever may change the CRD may widen it.
///
/// `spec.renewTime` and `status` are not read; see [`MeshNode`].
pub(crate) fn read_mesh_node(value: &Value, names: &mut KnownNames) -> Reading<MeshNode> {
    let mut problems = Vec::new();
    let object = mesh_node(&Field::root(value), names, &mut problems);
    Reading { object, problems }
}

fn mesh_node(
    root: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<MeshNode> {
    let metadata = root.get("metadata");
    let spec = root.get("spec");
    let name = node_name(&metadata.get("name"), problems)?;
    let key = spec.get("publicKey");
    required_text(&key, problems)?;
    let public_key = key_text::<PublicKey>(&key, problems)?;
    Some(MeshNode {
        name: NodeName::new(names.get(name)),
        uid: short_text(&metadata.get("uid"), LONGEST_UID, problems).map(Arc::from),
        public_key,
        name_signature: key_text(&spec.get("nameSignature"), problems).map(Box::new),
        addresses: addresses(&spec.get("addresses"), problems),
        relay_url: url(&spec.get("relayURL"), names, problems),
        relay_server: relay_server(&spec.get("relayServer"), names, problems).map(Box::new),
        pod_cidrs: pod_cidrs(&spec.get("podCIDRs"), problems),
        probe: probe(&spec.get("probe"), problems).map(Box::new),
        version: names.get(
            short_text(&spec.get("version"), MeshNode::MAX_VERSION_LENGTH, problems)
                .unwrap_or_default(),
        ),
        boot_id: short_text(&spec.get("bootID"), MeshNode::MAX_BOOT_ID_LENGTH, problems)
            .unwrap_or_default()
            .into(),
        previous_key: previous_key(&spec.get("previousKey"), problems).map(Box::new),
    })
}

/// Peers are called by it in logs, file names and URLs, so that no other characters than those
/// of host names are taken (DNS subdomains, as the API server demands of a Node's name; upper
/// case and `_` harm nobody).
fn node_name<'v>(field: &Field<'_, 'v>, problems: &mut Vec<Problem>) -> Option<&'v str> {
    let name = required_text(field, problems)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= LONGEST_NAME && name.bytes().all(is_plain) {
        return Some(name);
    }
    problems.push(field.problem(format!(
        "is not the name of a Node; write at most {LONGEST_NAME} letters, digits, - and ."
    )));
    None
}

/// The items of a list, no more than `most` of them.
fn first_items<'s, 'p: 's, 'v>(
    list: &'s Field<'p, 'v>,
    most: usize,
    problems: &mut Vec<Problem>,
) -> Vec<Field<'s, 'v>> {
    let mut items = list.items(problems);
    let first: Vec<_> = items.by_ref().take(most).collect();
    let more = items.count();
    if more > 0 {
        problems.push(list.problem(format!(
            "has {} entries; write the best {most} at most",
            most + more
        )));
    }
    first
}

fn addresses(list: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for field in first_items(list, MeshNode::MAX_ADDRESSES, problems) {
        if let Some(address) = address(&field, problems)
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses.shrink_to_fit();
    addresses
}

fn address(field: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<SocketAddr> {
    let text = field.text(problems)?;
    match text.parse::<SocketAddr>() {
        Ok(address) if may_be_another_nodes(address) => Some(address),
        Ok(address) => {
            problems.push(field.problem(format!(
                "{address} leads to no other node; write a unicast address and a port"
            )));
            None
        }
        Err(_) => {
            problems.push(
                field.problem(
                    "is not an address with a port; write one such as 203.0.113.7:20006 or \
                 [2001:db8::7]:20006"
                        .to_owned(),
                ),
            );
            None
        }
    }
}

/// A peer must not make us send to ourselves, or to many. IPv6's link-local addresses mean
/// nothing without the name of a link, which is each node's own.
fn may_be_another_nodes(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let unusable = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let names_a_link = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    address.port() > 0
        && !unusable
        && !names_a_link
        && !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
}

fn relay_server(
    field: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<RelayServer> {
    if !field.is_mapping(problems) {
        return None;
    }
    let list = field.get("urls");
    let mut urls: Vec<Arc<str>> = Vec::new();
    for item in first_items(&list, MeshNode::MAX_RELAY_URLS, problems) {
        if let Some(url) = url(&item, names, problems)
            && !urls.contains(&url)
        {
            urls.push(url);
        }
    }
    let port = field.get("addressDiscoveryPort");
    if port.is_absent() {
        problems.push(port.problem("is missing; write the relay's UDP port".to_owned()));
    }
    let port = port_number(&port, problems)?;
    if urls.is_empty() {
        problems.push(list.problem("has no usable URL; the relay is not used".to_owned()));
        return None;
    }
    urls.shrink_to_fit();
    Some(RelayServer {
        urls,
        address_discovery_port: port,
    })
}

fn url(
    field: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<Arc<str>> {
    let text = short_text(field, MeshNode::MAX_URL_LENGTH, problems).filter(|t| !t.is_empty())?;
    if is_relay_url(text) {
        // Most nodes are at one of a few relays.
        Some(names.get(text))
    } else {
        problems.push(
            field.problem(
                "is not the URL of a relay; write one such as http://203.0.113.7:20007 or \
             https://relay.example.org"
                    .to_owned(),
            ),
        );
        None
    }
}

fn is_relay_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else {
        return false;
    };
    let has_host = uri
        .authority()
        .is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
    matches!(uri.scheme_str(), Some("http" | "https")) && has_host
}

fn pod_cidrs(list: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let mut cidrs = Vec::new();
    for field in first_items(list, MeshNode::MAX_POD_CIDRS, problems) {
        match field.text(problems).map(str::parse::<IpNet>) {
            Some(Ok(cidr)) if cidr.prefix_len() > 0 => cidrs.push(cidr),
            Some(Ok(_) | Err(_)) => problems.push(
                field.problem("is not a pod network; write one such as 10.244.1.0/24".to_owned()),
            ),
            None => {}
        }
    }
    cidrs.shrink_to_fit();
    cidrs
}

fn probe(field: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<ProbePlaces> {
    if !field.is_mapping(problems) {
        return None;
    }
    let port = field.get("port");
    if port.is_absent() {
        problems.push(port.problem("is missing; write the UDP port of the probes".to_owned()));
    }
    let port = port_number(&port, problems)?;
    let list = field.get("podAddresses");
    let mut pod_addresses = Vec::new();
    for item in first_items(&list, MeshNode::MAX_PROBE_ADDRESSES, problems) {
        match item.ip(problems) {
            Some(ip) if !may_be_another_nodes(SocketAddr::new(ip, port)) => {
                problems.push(item.problem(format!(
                    "{ip} leads to no other node; write a unicast address"
                )));
            }
            Some(ip) if !pod_addresses.contains(&ip) => pod_addresses.push(ip),
            Some(_) | None => {}
        }
    }
    pod_addresses.shrink_to_fit();
    Some(ProbePlaces {
        port,
        pod_addresses,
    })
}

fn previous_key(field: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<PreviousKey> {
    if !field.is_mapping(problems) {
        return None;
    }
    let (key, signature) = (field.get("publicKey"), field.get("signature"));
    let has_both =
        required_text(&key, problems).is_some() & required_text(&signature, problems).is_some();
    if !has_both {
        return None;
    }
    Some(PreviousKey {
        public_key: key_text::<PublicKey>(&key, problems)?,
        signature: key_text::<KeySignature>(&signature, problems)?,
    })
}

fn key_text<T: std::str::FromStr<Err = edgemesh_catalog::NotBase64>>(
    field: &Field<'_, '_>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    match field.text(problems)?.parse() {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            problems.push(field.problem(error.to_string()));
            None
        }
    }
}

/// A text of visible ASCII characters, of at most `longest` of them: it goes into logs.
fn short_text<'v>(
    field: &Field<'_, 'v>,
    longest: usize,
    problems: &mut Vec<Problem>,
) -> Option<&'v str> {
    let text = field.text(problems)?;
    if text.len() <= longest && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(text);
    }
    problems.push(field.problem(format!(
        "is too long or has odd characters; write at most {longest} visible ASCII characters"
    )));
    None
}

#[cfg(test)]
#[path = "mesh_node_tests.rs"]
mod tests;

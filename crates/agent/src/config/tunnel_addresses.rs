//! Readers of the addresses at which the tunnel and its relays are reached.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use edgemesh_yaml::{Kind, Node};

use super::edge_tunnel::{AdvertisedAddress, RelayAddress, RelayNode};
use super::findings::Report;
use super::parse::entries;
use super::values::{List, Reader, Scalar, Text, described, quoted, text, whole};

/// A port, or 0 for another key's.
pub(super) struct PortOr(pub(super) &'static str);

impl Scalar for PortOr {
    type Value = Option<u16>;

    fn accepts(&self) -> String {
        format!("a port, 1 to 65535, or 0 for that of {}", self.0)
    }

    fn take(&self, node: &Node<'_>) -> Option<Option<u16>> {
        let port = u16::try_from(whole(node)?).ok()?;
        Some((port > 0).then_some(port))
    }

    fn show(&self, value: &Option<u16>) -> String {
        value.unwrap_or(0).to_string()
    }
}

/// An address of this node.
pub(super) struct OwnAddress;

impl Scalar for OwnAddress {
    type Value = AdvertisedAddress;

    fn accepts(&self) -> String {
        "an IP address with or without a port, as 203.0.113.5 or [2001:db8::5]:20006".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<AdvertisedAddress> {
        let text = text(node)?;
        let address = match text.parse::<IpAddr>() {
            Ok(ip) => AdvertisedAddress { ip, port: None },
            Err(_) => {
                let address: SocketAddr = text.parse().ok()?;
                AdvertisedAddress {
                    ip: address.ip(),
                    port: Some(address.port()).filter(|port| *port > 0),
                }
            }
        };
        others_reach(address.ip).then_some(address)
    }

    fn show(&self, value: &AdvertisedAddress) -> String {
        quoted(&value.to_string())
    }
}

/// An address of a relay.
pub(super) struct AddressOfRelay;

impl AddressOfRelay {
    fn parse(text: &str) -> Option<RelayAddress> {
        if let Ok(ip) = text.parse::<Ipv6Addr>() {
            return others_reach(ip.into()).then(|| RelayAddress::Host {
                host: ip.to_string(),
                port: None,
            });
        }
        let url = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let Some(rest) = url else {
            let (host, port) = host_and_port(text)?;
            return Some(RelayAddress::Host { host, port });
        };
        // The relay has one path of its own, and a password would be shown in logs.
        host_and_port(rest.strip_suffix('/').unwrap_or(rest))?;
        Some(RelayAddress::Url(text.to_owned()))
    }
}

impl Scalar for AddressOfRelay {
    type Value = RelayAddress;

    fn accepts(&self) -> String {
        "an IP address or a host name, with or without a port, or a URL like \
         https://relay.example.org:443 without path, user and password"
            .to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<RelayAddress> {
        Self::parse(&text(node)?)
    }

    fn show(&self, value: &RelayAddress) -> String {
        quoted(&value.to_string())
    }
}

/// Host, without brackets, and port of an authority.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, after) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']')?;
            let ip: Ipv6Addr = host.parse().ok()?;
            (others_reach(ip.into()).then(|| ip.to_string())?, after)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, after) = authority.split_at(end);
            (is_host(host).then(|| host.to_owned())?, after)
        }
    };
    let port = match after.strip_prefix(':') {
        Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port > 0)?),
        None if after.is_empty() => None,
        None => return None,
    };
    Some((host, port))
}

/// Whether it is an IPv4 address of use, or a DNS name (RFC 1123).
fn is_host(host: &str) -> bool {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return others_reach(ip);
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A name whose last part is a number is an address with a slip in it.
    let top = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !top.chars().all(|c| c.is_ascii_digit())
}

/// Whether an address can mean this very host to others.
fn others_reach(ip: IpAddr) -> bool {
    let nowhere = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        // Means nothing without the interface.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(nowhere || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// The list of relay nodes.
pub(super) struct RelayNodes;

impl Reader for RelayNodes {
    type Value = Vec<RelayNode>;

    fn accepts(&self) -> String {
        format!(
            "a list; each item a `nodeName` and its `advertiseAddress`, a list; each item {}",
            Scalar::accepts(&AddressOfRelay)
        )
    }

    fn read(&self, node: Node<'_>, path: &str, report: &mut Report) -> Option<Vec<RelayNode>> {
        if node.kind() != Kind::Sequence {
            let message = format!("must be a list; found {}", described(&node));
            report.error(node.mark(), path, message);
            return None;
        }
        let mut nodes: Vec<RelayNode> = Vec::new();
        let mistakes = report.errors.len();
        for (i, item) in node.items().enumerate() {
            let path = format!("{path}[{i}]");
            let mark = item.mark();
            let Some(relay) = relay_node(item, &path, report) else {
                continue;
            };
            let known = |known: &RelayNode| known.node_name == relay.node_name;
            if let Some(first) = nodes.iter().position(known) {
                let message = format!("node {} is item {first} already", relay.node_name);
                report.error(mark, &path, message);
            }
            nodes.push(relay);
        }
        (report.errors.len() == mistakes).then_some(nodes)
    }

    fn show(&self, value: &Vec<RelayNode>) -> String {
        let item = |node: &RelayNode| {
            let addresses = List(AddressOfRelay).show(&node.advertise_address);
            format!(
                "{{nodeName: {}, advertiseAddress: {addresses}}}",
                quoted(&node.node_name)
            )
        };
        format!(
            "[{}]",
            value.iter().map(item).collect::<Vec<_>>().join(", ")
        )
    }
}

fn relay_node(node: Node<'_>, path: &str, report: &mut Report) -> Option<RelayNode> {
    const NAME: Text = Text("the name of a node");
    const ADDRESSES: List<AddressOfRelay> = List(AddressOfRelay);
    let mistakes = report.errors.len();
    let mark = node.mark();
    let mut relay = RelayNode {
        node_name: String::new(),
        advertise_address: Vec::new(),
    };
    for (key, value) in entries(node, path, &["nodeName", "advertiseAddress"], report) {
        let path = format!("{path}.{key}");
        if key == "nodeName" {
            relay.node_name = NAME.read(value, &path, report).unwrap_or_default();
        } else {
            relay.advertise_address = ADDRESSES.read(value, &path, report).unwrap_or_default();
        }
    }
    if report.errors.len() > mistakes {
        return None;
    }
    if relay.node_name.is_empty() {
        report.error(mark, path, "names no node; set nodeName");
        return None;
    }
    if relay.advertise_address.is_empty() {
        let message = "has no advertiseAddress, so that no other node finds the relay; set at \
                       least one";
        report.warning(mark, path, message);
    }
    Some(relay)
}

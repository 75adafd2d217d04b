//! Readers of the addresses at which the tunnel and its relays are reached.

use std::net::{IpAddr, SocketAddr};

use edgemesh_yaml::{Kind, Node};

use super::edge_tunnel::{AdvertisedAddress, RelayNode};
use super::findings::Report;
use super::mapping::entries;
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
        address(&text(node)?)
    }

    fn show(&self, value: &AdvertisedAddress) -> String {
        quoted(&value.to_string())
    }
}

/// An address of a relay. There are no names, for a relay is what a node finds others by
/// when all else fails, and who would tell it then what a name means?
pub(super) struct AddressOfRelay;

impl AddressOfRelay {
    fn parse(text: &str) -> Option<AdvertisedAddress> {
        let Some(url) = text.strip_prefix("http://") else {
            return address(text);
        };
        let authority = url.strip_suffix('/').unwrap_or(url);
        let bare = authority
            .strip_prefix('[')
            .and_then(|v6| v6.strip_suffix(']'));
        let address = address(bare.unwrap_or(authority))?;
        // An address of IPv6 stands in brackets there.
        let is_url = address.ip.is_ipv4() || authority.starts_with('[');
        is_url.then_some(AdvertisedAddress {
            port: address.port.or(Some(80)),
            ..address
        })
    }
}

impl Scalar for AddressOfRelay {
    type Value = AdvertisedAddress;

    fn accepts(&self) -> String {
        "an IP address with or without a port, as 203.0.113.5 or [2001:db8::5]:443, or \
         http:// before it"
            .to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<AdvertisedAddress> {
        Self::parse(&text(node)?)
    }

    fn show(&self, value: &AdvertisedAddress) -> String {
        quoted(&value.to_string())
    }
}

fn address(text: &str) -> Option<AdvertisedAddress> {
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => AdvertisedAddress { ip, port: None },
        Err(_) => {
            let address: SocketAddr = text.parse().ok()?;
            AdvertisedAddress {
                ip: address.ip(),
                port: Some(address.port()),
            }
        }
    };
    (others_reach(address.ip) && address.port != Some(0)).then_some(address)
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
        let mistakes = report.mistakes();
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
        (report.mistakes() == mistakes).then_some(nodes)
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
    let mistakes = report.mistakes();
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
    if report.mistakes() > mistakes {
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

//! The Linux bridges of this host, and which networks are on them.
//!
//! The messages are those of `include/uapi/linux/rtnetlink.h`, `if_link.h` and `if_addr.h`.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use crate::Family;
use crate::netlink::{Message, NetlinkSocket, nested, push_attribute};

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
/// `struct ifinfomsg` and `struct ifaddrmsg`.
const LINK_FIXED_PART: usize = 16;
const ADDRESS_FIXED_PART: usize = 8;
const NAME: u16 = 3;
const LINK_INFO: u16 = 18;
/// Within [`LINK_INFO`].
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// Within [`INFO_DATA`] of a bridge.
const CALL_IPTABLES: u16 = 36;
const CALL_IP6TABLES: u16 = 37;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const NESTED: u16 = 0x8000;

/// A network that is on a bridge, because the bridge has an address out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgedNetwork {
    pub(super) network: IpNet,
    /// The bridge's name.
    pub(super) bridge: Arc<str>,
    /// Whether this bridge shows packets to NAT whatever the parameter says.
    pub(super) calls: bool,
}

#[derive(Clone, Debug)]
struct Bridge {
    name: Arc<str>,
    calls_iptables: bool,
    calls_ip6tables: bool,
}

/// All networks on bridges, in the order of the kernel's list of addresses. What is on a
/// network of one address can talk to nobody there, so those are left out.
///
/// # Errors
///
/// The kernel's.
pub(super) fn bridged_networks() -> io::Result<Vec<BridgedNetwork>> {
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkRoute, 0)?;
    let mut bridges = BTreeMap::new();
    socket.dump(GET_LINK, &only_bridges(), |message| {
        bridges.extend(bridge(message));
    })?;
    let mut networks = Vec::new();
    if !bridges.is_empty() {
        socket.dump(GET_ADDRESS, &[0; ADDRESS_FIXED_PART], |message| {
            networks.extend(network(message, &bridges));
        })?;
    }
    Ok(networks)
}

/// Kernels that know no such filter tell of all devices.
fn only_bridges() -> Vec<u8> {
    let mut kind = Vec::new();
    push_attribute(&mut kind, INFO_KIND, b"bridge\0");
    let mut payload = vec![0; LINK_FIXED_PART];
    push_attribute(&mut payload, LINK_INFO | NESTED, &kind);
    payload
}

/// A bridge by its number.
fn bridge(message: Message<'_>) -> Option<(u32, Bridge)> {
    let attribute = |wanted| {
        message
            .attributes(LINK_FIXED_PART)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let info = |wanted| {
        nested(attribute(LINK_INFO)?)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    if text(info(INFO_KIND)?) != "bridge" {
        return None;
    }
    let calls = |wanted| {
        nested(info(INFO_DATA).unwrap_or_default())
            .any(|(kind, value)| kind == wanted && value != [0])
    };
    let bridge = Bridge {
        name: text(attribute(NAME)?).as_str().into(),
        calls_iptables: calls(CALL_IPTABLES),
        calls_ip6tables: calls(CALL_IP6TABLES),
    };
    Some((number(message.payload)?, bridge))
}

fn network(message: Message<'_>, bridges: &BTreeMap<u32, Bridge>) -> Option<BridgedNetwork> {
    let bridge = bridges.get(&number(message.payload)?)?;
    let prefix = *message.payload.get(1)?;
    let attribute = |wanted| {
        message
            .attributes(ADDRESS_FIXED_PART)
            .find(|(kind, _)| *kind == wanted)
            .and_then(|(_, value)| address(value))
    };
    // Where there is a peer, the network is the peer's.
    let ip = attribute(ADDRESS).or_else(|| attribute(LOCAL))?;
    let network = IpNet::new(ip, prefix).ok()?.trunc();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let family = Family::of(ip);
    (prefix < family.host_prefix() && !link_local).then(|| BridgedNetwork {
        network,
        bridge: Arc::clone(&bridge.name),
        calls: match family {
            Family::V4 => bridge.calls_iptables,
            Family::V6 => bridge.calls_ip6tables,
        },
    })
}

/// In both fixed parts a device's number is the second word.
fn number(payload: &[u8]) -> Option<u32> {
    let word = payload.get(4..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

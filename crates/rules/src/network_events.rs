//! The kernel's word that routes, addresses or links of this network namespace changed.
//!
//! What the agent does itself is not told, nor what comes and goes with every pod: the links
//! into them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;
use tokio::io::unix::AsyncFd;

use crate::host_network::OWN_PROTOCOL;
use crate::netlink::{Message, NetlinkSocket, nested};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and
/// `RTMGRP_IPV6_ROUTE` (`include/uapi/linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETED_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETED_ROUTE: u16 = 25;

/// `struct ifinfomsg`, and what is in it.
const LINK_FIXED_PART: usize = 16;
const RUNNING: u32 = 0x40;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_INFO_KIND: u16 = 1;
const LINK_OTHER_NAMESPACE: u16 = 37;

/// `struct rtmsg`, and what is in it.
const ROUTE_FIXED_PART: usize = 12;
const ROUTE_DESTINATION: u16 = 1;
const FAMILY_4: u8 = 2;
const FAMILY_6: u8 = 10;
/// Types of routes by which packets leave this host, or are refused.
const LEADS_ELSEWHERE: [u8; 5] = [1, 6, 7, 8, 9];
/// A cached route (`RTM_F_CLONED`).
const CLONED: u32 = 0x200;

/// A change of how other hosts are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkEvent {
    /// A route to this network came, went or changed.
    Route(IpNet),
    /// An address of this host came, went or was renewed.
    Address,
    /// A link went down; or more happened than could be told.
    Anything,
}

/// Hears of changes in the current network namespace.
#[derive(Debug)]
pub struct NetworkEvents {
    socket: AsyncFd<NetlinkSocket>,
    /// Links that are known to be down.
    down: BTreeSet<u32>,
}

impl NetworkEvents {
    /// Begins to listen. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn listen() -> io::Result<Self> {
        let socket = NetlinkSocket::open(SockProtocol::NetlinkRoute, GROUPS)?;
        Ok(Self {
            socket: watched(socket)?,
            down: BTreeSet::new(),
        })
    }

    /// Waits for changes, and hands over those that were told since the last call, each once.
    /// Safe to cancel.
    ///
    /// # Errors
    ///
    /// When the socket is beyond use: listen anew.
    pub async fn next(&mut self) -> io::Result<BTreeSet<NetworkEvent>> {
        loop {
            let mut ready = self.socket.readable_mut().await?;
            let mut events = BTreeSet::new();
            let down = &mut self.down;
            let drained = ready
                .get_inner_mut()
                .drain(|message| events.extend(read(&message, down)));
            match drained {
                Ok(()) => ready.clear_ready(),
                // There may be more to read.
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    events.insert(NetworkEvent::Anything);
                }
                Err(error) => return Err(error),
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the unsoundness is about types that may close their descriptor early, which \
              this one never does; the replacement is unsafe to call"
)]
fn watched(socket: NetlinkSocket) -> io::Result<AsyncFd<NetlinkSocket>> {
    AsyncFd::new(socket)
}

fn read(message: &Message<'_>, down: &mut BTreeSet<u32>) -> Option<NetworkEvent> {
    match message.kind {
        NEW_ROUTE | DELETED_ROUTE => route(message).map(NetworkEvent::Route),
        NEW_ADDRESS | DELETED_ADDRESS => Some(NetworkEvent::Address),
        NEW_LINK | DELETED_LINK => link(message, down),
        _ => None,
    }
}

/// Where a route leads that was changed, if packets to others take it.
fn route(message: &Message<'_>) -> Option<IpNet> {
    let [family, length, _, _, _, protocol, _, kind] = *message.payload.first_chunk()?;
    let flags = u32::from_ne_bytes(*message.payload.get(8..)?.first_chunk()?);
    let destination = message
        .attributes(ROUTE_FIXED_PART)
        .find_map(|(attribute, value)| (attribute == ROUTE_DESTINATION).then_some(value));
    let is_meant = LEADS_ELSEWHERE.contains(&kind) && flags & CLONED == 0;
    if !is_meant || protocol == OWN_PROTOCOL {
        return None;
    }
    let ip = match (family, destination) {
        (FAMILY_4, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (FAMILY_6, None) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (FAMILY_4, Some(bytes)) => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        (FAMILY_6, Some(bytes)) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    // Multicast routes come and go with every link.
    (!ip.is_multicast())
        .then(|| IpNet::new(ip, length).ok())
        .flatten()
}

/// Whether a link went down by which others may have been reached.
fn link(message: &Message<'_>, down: &mut BTreeSet<u32>) -> Option<NetworkEvent> {
    let word = |at: usize| {
        Some(u32::from_ne_bytes(
            *message.payload.get(at..)?.first_chunk()?,
        ))
    };
    let (index, flags) = (word(4)?, word(8)?);
    let runs = message.kind == NEW_LINK && flags & RUNNING != 0;
    let was_down = if runs || message.kind == DELETED_LINK {
        down.remove(&index)
    } else {
        !down.insert(index)
    };
    (!runs && !was_down && !is_of_a_pod(message)).then_some(NetworkEvent::Anything)
}

/// Whether it is a pod's end of a link, or a port of a bridge: those come and go with pods,
/// and what is behind them is on this host.
fn is_of_a_pod(message: &Message<'_>) -> bool {
    let mut is_veth = false;
    let mut leads_out = false;
    for (attribute, value) in message.attributes(LINK_FIXED_PART) {
        match attribute {
            LINK_MASTER => return true,
            LINK_OTHER_NAMESPACE => leads_out = true,
            LINK_INFO => {
                is_veth = nested(value).any(|(kind, name)| {
                    kind == LINK_INFO_KIND && name.split(|byte| *byte == 0).next() == Some(b"veth")
                });
            }
            _ => {}
        }
    }
    is_veth && leads_out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{messages, push_attribute};

    const UNICAST: u8 = 1;
    const LOCAL: u8 = 2;
    const STATIC: u8 = 4;

    fn told(kind: u16, payload: &[u8], down: &mut BTreeSet<u32>) -> Vec<NetworkEvent> {
        let mut bytes = Vec::new();
        let length = u32::try_from(16 + payload.len()).unwrap();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        messages(&bytes)
            .filter_map(|message| read(&message, down))
            .collect()
    }

    fn route_to(
        to: Option<([u8; 4], u8)>,
        protocol: u8,
        kind: u8,
        flags: u32,
    ) -> Vec<NetworkEvent> {
        let length = to.map_or(0, |(_, length)| length);
        let mut payload = vec![FAMILY_4, length, 0, 0, 0, protocol, 0, kind];
        payload.extend(flags.to_ne_bytes());
        if let Some((address, _)) = to {
            push_attribute(&mut payload, ROUTE_DESTINATION, &address);
        }
        told(NEW_ROUTE, &payload, &mut BTreeSet::new())
    }

    fn link_is(kind: u16, index: u32, flags: u32, pods: bool) -> (u16, Vec<u8>) {
        let mut payload = vec![0; 4];
        payload.extend(index.to_ne_bytes());
        payload.extend(flags.to_ne_bytes());
        payload.extend([0; 4]);
        if pods {
            let mut info = Vec::new();
            push_attribute(&mut info, LINK_INFO_KIND, b"veth\0");
            push_attribute(&mut payload, LINK_INFO, &info);
            push_attribute(&mut payload, LINK_OTHER_NAMESPACE, &[0; 4]);
        }
        (kind, payload)
    }

    #[test]
    fn routes_to_others_are_told_with_where_they_lead() {
        let to = |text: &str| vec![NetworkEvent::Route(text.parse().unwrap())];
        let pods = Some(([10, 244, 2, 0], 24));
        assert_eq!(route_to(pods, STATIC, UNICAST, 0), to("10.244.2.0/24"));
        assert_eq!(route_to(None, STATIC, UNICAST, 0), to("0.0.0.0/0"));
        // A blackhole, and a route of somebody else's daemon.
        assert_eq!(route_to(pods, STATIC, 6, 0), to("10.244.2.0/24"));
        assert_eq!(route_to(pods, 186, UNICAST, 0), to("10.244.2.0/24"));
    }

    #[test]
    fn our_own_routes_and_those_that_lead_nowhere_else_are_not_told() {
        let service = Some(([10, 96, 0, 1], 32));
        assert_eq!(route_to(service, OWN_PROTOCOL, UNICAST, 0), []);
        assert_eq!(route_to(service, STATIC, LOCAL, 0), []);
        assert_eq!(route_to(service, STATIC, UNICAST, CLONED), []);
        assert_eq!(route_to(Some(([224, 0, 0, 0], 4)), STATIC, UNICAST, 0), []);
    }

    #[test]
    fn a_link_that_goes_down_is_told_once_and_a_pods_never() {
        let mut down = BTreeSet::new();
        let mut tell = |(kind, payload): (u16, Vec<u8>)| told(kind, &payload, &mut down);
        assert_eq!(tell(link_is(NEW_LINK, 2, RUNNING, false)), []);
        let went = [NetworkEvent::Anything];
        assert_eq!(tell(link_is(NEW_LINK, 2, 0, false)), went);
        assert_eq!(tell(link_is(NEW_LINK, 2, 0, false)), []);
        assert_eq!(tell(link_is(DELETED_LINK, 2, 0, false)), []);
        assert_eq!(tell(link_is(DELETED_LINK, 3, 0, false)), went);
        assert_eq!(tell(link_is(NEW_LINK, 4, 0, true)), []);
        assert_eq!(tell(link_is(DELETED_LINK, 4, 0, true)), []);
    }

    #[test]
    fn an_address_is_told_whatever_it_is() {
        let mut down = BTreeSet::new();
        let address = [NetworkEvent::Address];
        assert_eq!(told(NEW_ADDRESS, &[], &mut down), address);
        assert_eq!(told(DELETED_ADDRESS, &[], &mut down), address);
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_survived(kind in 0_u16..32, payload: Vec<u8>) {
            told(kind, &payload, &mut BTreeSet::new());
        }
    }
}

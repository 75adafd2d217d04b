//! UDP flows that still lead to where nobody serves them any more.
//!
//! The nat rules decide about the first datagram of a flow; connection tracking sends the
//! others after it, for as long as the client keeps sending, however the rules have changed
//! since (many issues of kubernetes; kube-proxy `pkg/proxy/conntrack/cleanup.go`). A client
//! that never changes its port would be stuck. So when a portal's port on the intercept
//! address changes or goes, its flows are taken out of connection tracking, and the next
//! datagram meets the rules again.
//! The messages are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use nix::sys::socket::SockProtocol;

use crate::netlink::{Message, NetlinkSocket, nested, push_attribute};
use crate::{Family, Ruleset};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Within a tuple.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_V4: u16 = 1;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// Within the filter: what counts of the reply's tuple.
const REPLY_FLAGS: u16 = 2;
const BY_SOURCE: u32 = 1 << 0;
const BY_PROTOCOL: u32 = 1 << 3;

const NESTED: u16 = 0x8000;
const UDP: u8 = 17;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;

/// A UDP flow that a rule of ours sent to the intercept address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    /// Where the client sends its datagrams.
    to: SocketAddr,
    /// The port on the intercept address that they are brought to.
    port: u16,
    /// What names it to the kernel.
    name: Vec<(u16, Vec<u8>)>,
}

/// Takes flows out of connection tracking that lead to a port on the intercept address
/// which is no longer their portal's in `rules`; how many there were.
///
/// To be called when the rules are in force. Flows of others are left alone, those
/// addressed to the intercept address itself among them.
///
/// # Errors
///
/// The kernel's, as when it has no connection tracking netlink (`nf_conntrack_netlink`).
pub async fn remove_stale_flows(rules: Arc<Ruleset>) -> io::Result<usize> {
    let work = move || remove(rules.intercept(), |flow| is_stale(flow, &rules));
    // The kernel goes through all its connections for it.
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

fn is_stale(flow: &Flow, rules: &Ruleset) -> bool {
    let frontend = Frontend {
        ip: flow.to.ip(),
        protocol: Protocol::Udp,
        port: flow.to.port(),
    };
    let now = rules.portals().get(&frontend).map(|rule| rule.to_port);
    flow.to.ip() != rules.intercept() && now != Some(flow.port)
}

fn remove(intercept: IpAddr, stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
    let mut found = Vec::new();
    socket.dump(GET, &request(intercept), |message| {
        found.extend(Flow::read(message, intercept).filter(|flow| stale(flow)));
    })?;
    let mut removed = 0;
    for flow in found {
        match socket.command(DELETE, 0, &flow.deletion(Family::of(intercept))) {
            Ok(()) => removed += 1,
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Asks for the UDP flows whose answers come from `intercept`. Kernels before 5.8 know no
/// such filter and tell of all flows; which ones count is looked at again on our side.
fn request(intercept: IpAddr) -> Vec<u8> {
    let mut protocol = Vec::new();
    push_attribute(&mut protocol, PROTOCOL_NUMBER, &[UDP]);
    let mut tuple = Vec::new();
    let mut by = BY_PROTOCOL;
    if let IpAddr::V4(v4) = intercept {
        let mut ip = Vec::new();
        push_attribute(&mut ip, SOURCE_V4, &v4.octets());
        push_attribute(&mut tuple, TUPLE_IP | NESTED, &ip);
        by |= BY_SOURCE;
    }
    // By IPv6 addresses kernels filter the wrong way round: they tell of all others
    // (`ctnetlink_filter_match_tuple`, seen in 6.18).
    push_attribute(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
    let mut filter = Vec::new();
    push_attribute(&mut filter, REPLY_FLAGS, &by.to_ne_bytes());
    let mut payload = header(Family::of(intercept));
    push_attribute(&mut payload, TUPLE_REPLY | NESTED, &tuple);
    push_attribute(&mut payload, FILTER | NESTED, &filter);
    payload
}

/// `struct nfgenmsg`, with `NFPROTO_IPV4` or `NFPROTO_IPV6`.
fn header(family: Family) -> Vec<u8> {
    let protocol = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    vec![protocol, 0, 0, 0]
}

/// Addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    from: SocketAddr,
    to: SocketAddr,
}

impl Tuple {
    /// None unless it is complete, and of UDP.
    fn read(value: &[u8]) -> Option<Self> {
        let part = |wanted| nested(value).find(|(kind, _)| *kind == wanted);
        let (_, ip) = part(TUPLE_IP)?;
        let (_, protocol) = part(TUPLE_PROTOCOL)?;
        let of_protocol = |wanted| {
            nested(protocol)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        };
        if of_protocol(PROTOCOL_NUMBER)? != [UDP] {
            return None;
        }
        let port = |kind| Some(u16::from_be_bytes(of_protocol(kind)?.try_into().ok()?));
        let (mut from, mut to) = (None, None);
        for (kind, value) in nested(ip) {
            // Sources have odd numbers, destinations even ones.
            *(if kind % 2 == 1 { &mut from } else { &mut to }) = address(value);
        }
        Some(Self {
            from: SocketAddr::new(from?, port(SOURCE_PORT)?),
            to: SocketAddr::new(to?, port(DESTINATION_PORT)?),
        })
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

impl Flow {
    /// None when it is not answered from `intercept`.
    fn read(message: Message<'_>, intercept: IpAddr) -> Option<Self> {
        let (mut original, mut reply) = (None, None);
        let mut name = Vec::new();
        for (kind, value) in message.attributes(FIXED_PART) {
            match kind {
                TUPLE_ORIGINAL => {
                    original = Tuple::read(value);
                    name.push((kind | NESTED, value.to_vec()));
                }
                TUPLE_REPLY => reply = Tuple::read(value),
                ID | ZONE => name.push((kind, value.to_vec())),
                _ => {}
            }
        }
        let reply = reply.filter(|reply| reply.from.ip() == intercept)?;
        Some(Self {
            to: original?.to,
            port: reply.from.port(),
            name,
        })
    }

    fn deletion(&self, family: Family) -> Vec<u8> {
        let mut payload = header(family);
        for (kind, value) in &self.name {
            push_attribute(&mut payload, *kind, value);
        }
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mark, PortalRule, RuleComment};

    const INTERCEPT: &str = "169.254.96.16";

    fn rules(portals: &[(&str, u16)]) -> Ruleset {
        let mut rules = Ruleset::new(INTERCEPT.parse().unwrap(), 9, Mark::AGENT);
        for (frontend, to_port) in portals {
            let frontend: SocketAddr = frontend.parse().unwrap();
            let frontend = Frontend {
                ip: frontend.ip(),
                protocol: Protocol::Udp,
                port: frontend.port(),
            };
            let rule = PortalRule {
                comment: RuleComment::new("default/dns:dns"),
                to_port: *to_port,
                kernel: None,
            };
            rules.insert(frontend, rule).unwrap();
        }
        rules
    }

    fn flow(to: &str, port: u16) -> Flow {
        Flow {
            to: to.parse().unwrap(),
            port,
            name: Vec::new(),
        }
    }

    #[test]
    fn a_flow_is_stale_when_its_portal_is_gone_or_served_at_another_port() {
        let rules = rules(&[("10.96.0.10:53", 40001)]);
        assert!(!is_stale(&flow("10.96.0.10:53", 40001), &rules));
        assert!(is_stale(&flow("10.96.0.10:53", 40000), &rules));
        assert!(is_stale(&flow("10.96.0.11:53", 40001), &rules));
        assert!(is_stale(&flow("10.96.0.10:54", 40001), &rules));
    }

    #[test]
    fn what_strangers_send_to_the_intercept_address_itself_is_left_alone() {
        let rules = rules(&[]);
        assert!(!is_stale(&flow("169.254.96.16:40001", 9), &rules));
    }
}

//! UDP flows that still lead to where nobody serves them any more.
//!
//! The nat rules decide about the first datagram of a flow; connection tracking sends the
//! others after it, for as long as the client keeps sending, however the rules have changed
//! since (many issues of kubernetes; kube-proxy `pkg/proxy/conntrack/cleanup.go`). A client
//! that never changes its port would be stuck. So when a portal's port on the intercept
//! address changes or goes, or the kernel no longer sends it to an endpoint, its flows are
//! taken out of connection tracking, and the next datagram meets the rules again. Flows whose
//! endpoint is still there stay where they are, whatever else changed.
//! The messages are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use nix::sys::socket::SockProtocol;

use crate::netlink::{Message, NetlinkSocket, nested, push_attribute};
use crate::{Family, PortalRule, Ruleset};

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

/// A UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    /// Where the client sends its datagrams.
    to: SocketAddr,
    /// Where they are brought to, and answered from.
    brought_to: SocketAddr,
    /// What names it to the kernel.
    name: Vec<(u16, Vec<u8>)>,
}

/// Ways to endpoints that the kernel does not go any more.
pub type LeftWays = BTreeSet<(Frontend, SocketAddr)>;

/// What flows may have become stale when the rules `now` took the place of `before`: none, or
/// some, those that went the ways returned among them.
#[must_use]
pub fn udp_ways_left(before: &Ruleset, now: &Ruleset) -> Option<LeftWays> {
    let (mut any, mut left) = (false, LeftWays::new());
    let differing = before.portals().differing(now.portals());
    for (frontend, rule, now) in differing.filter(|(at, _, _)| at.protocol == Protocol::Udp) {
        any |= rule.map(|rule| rule.to_port) != now.map(|now| now.to_port);
        let path_now = now.and_then(|now| now.kernel.as_ref());
        let paths = rule.and_then(|rule| rule.kernel.as_ref());
        let endpoints = paths.into_iter().flat_map(|path| path.endpoints());
        left.extend(
            endpoints
                .map(|endpoint| endpoint.address)
                .filter(|address| !path_now.is_some_and(|path| path.leads_to(*address)))
                .map(|address| (*frontend, address)),
        );
    }
    (any || !left.is_empty()).then_some(left)
}

fn udp(rules: &Ruleset) -> impl Iterator<Item = (&Frontend, &PortalRule)> {
    rules
        .portals()
        .iter()
        .filter(|(frontend, _)| frontend.protocol == Protocol::Udp)
}

/// Takes flows out of connection tracking that lead to where `rules` send nobody any more;
/// how many there were. Those are
///
/// * to a port on the intercept address which is no longer their portal's,
/// * by the kernel to what is no endpoint of its portal's kernel path any more, or by one of
///   the ways that were `left`,
/// * to a portal's own address: they began before there was a rule for it.
///
/// To be called when the rules are in force. Flows of others are left alone, those
/// addressed to the intercept address itself among them.
///
/// # Errors
///
/// The kernel's, as when it has no connection tracking netlink (`nf_conntrack_netlink`).
pub async fn remove_stale_flows(rules: Arc<Ruleset>, left: Arc<LeftWays>) -> io::Result<usize> {
    let asks_of_all = !left.is_empty() || udp(&rules).next().is_some();
    let work = move || {
        let answered_from = (!asks_of_all).then_some(rules.intercept());
        remove(rules.family(), answered_from, |flow| {
            is_stale(flow, &rules, &left)
        })
    };
    // The kernel goes through all its connections for it.
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

fn is_stale(flow: &Flow, rules: &Ruleset, left: &LeftWays) -> bool {
    if flow.to.ip() == rules.intercept() {
        return false;
    }
    let frontend = Frontend {
        ip: flow.to.ip(),
        protocol: Protocol::Udp,
        port: flow.to.port(),
    };
    let rule = rules.portals().get(&frontend);
    if flow.brought_to.ip() == rules.intercept() {
        return rule.map(|rule| rule.to_port) != Some(flow.brought_to.port());
    }
    if flow.brought_to == flow.to {
        return rule.is_some();
    }
    match rule.and_then(|rule| rule.kernel.as_ref()) {
        Some(path) => !path.leads_to(flow.brought_to),
        // kube-proxy's own flows are none of ours.
        None => left.contains(&(frontend, flow.brought_to)),
    }
}

/// Looks at the flows that are `answered_from` an address, or at all.
fn remove(
    family: Family,
    answered_from: Option<IpAddr>,
    stale: impl Fn(&Flow) -> bool,
) -> io::Result<usize> {
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
    let mut found = Vec::new();
    socket.dump(GET, &request(family, answered_from), |message| {
        found.extend(Flow::read(message).filter(|flow| stale(flow)));
    })?;
    let mut removed = 0;
    for flow in found {
        match socket.command(DELETE, 0, &flow.deletion(family)) {
            Ok(()) => removed += 1,
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Asks for the UDP flows that are `answered_from` an address, or for all of them. Kernels
/// before 5.8 know no such filter and tell of all flows; which ones count is looked at again
/// on our side.
fn request(family: Family, answered_from: Option<IpAddr>) -> Vec<u8> {
    let mut protocol = Vec::new();
    push_attribute(&mut protocol, PROTOCOL_NUMBER, &[UDP]);
    let mut tuple = Vec::new();
    let mut by = BY_PROTOCOL;
    if let Some(IpAddr::V4(v4)) = answered_from {
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
    let mut payload = header(family);
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
    /// None when it is not of UDP.
    fn read(message: Message<'_>) -> Option<Self> {
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
        Some(Self {
            to: original?.to,
            brought_to: reply?.from,
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
    use crate::{KernelEndpoint, KernelPath, Mark, RuleComment, Sharing};

    const INTERCEPT: &str = "169.254.96.16";

    fn frontend(text: &str) -> Frontend {
        let address: SocketAddr = text.parse().unwrap();
        Frontend {
            ip: address.ip(),
            protocol: Protocol::Udp,
            port: address.port(),
        }
    }

    fn by_agent(to_port: u16) -> PortalRule {
        PortalRule {
            comment: RuleComment::new("default/dns:dns"),
            to_port,
            kernel: None,
        }
    }

    fn by_kernel(endpoints: &[&str]) -> PortalRule {
        let endpoints = endpoints.iter().map(|address| KernelEndpoint {
            address: address.parse().unwrap(),
            is_pod_here: true,
        });
        PortalRule {
            kernel: KernelPath::new(endpoints, Sharing::Alone).map(Box::new),
            ..by_agent(40001)
        }
    }

    fn rules<const N: usize>(portals: [(&str, PortalRule); N]) -> Ruleset {
        let mut rules = Ruleset::new(INTERCEPT.parse().unwrap(), 9, Mark::AGENT);
        for (at, rule) in portals {
            rules.insert(frontend(at), rule).unwrap();
        }
        rules
    }

    fn flow(to: &str, brought_to: &str) -> Flow {
        Flow {
            to: to.parse().unwrap(),
            brought_to: brought_to.parse().unwrap(),
            name: Vec::new(),
        }
    }

    fn is_stale(to: &str, brought_to: &str, rules: &Ruleset) -> bool {
        super::is_stale(&flow(to, brought_to), rules, &LeftWays::new())
    }

    #[test]
    fn a_flow_is_stale_when_its_portal_is_gone_or_served_at_another_port() {
        let rules = rules([("10.96.0.10:53", by_agent(40001))]);
        let through_agent = |to, port: u16| is_stale(to, &format!("{INTERCEPT}:{port}"), &rules);
        assert!(!through_agent("10.96.0.10:53", 40001));
        assert!(through_agent("10.96.0.10:53", 40000));
        assert!(through_agent("10.96.0.11:53", 40001));
        assert!(through_agent("10.96.0.10:54", 40001));
    }

    #[test]
    fn the_kernels_flow_is_stale_when_its_endpoint_is_gone() {
        let rules = rules([("10.96.0.10:53", by_kernel(&["10.244.1.2:5353"]))]);
        assert!(!is_stale("10.96.0.10:53", "10.244.1.2:5353", &rules));
        assert!(is_stale("10.96.0.10:53", "10.244.1.3:5353", &rules));
        // The agent goes on with what it has, since the portal keeps its port there.
        let agents = format!("{INTERCEPT}:40001");
        assert!(!is_stale("10.96.0.10:53", &agents, &rules));
    }

    #[test]
    fn a_flow_that_began_before_its_portal_had_a_rule_is_stale() {
        for rule in [by_agent(40001), by_kernel(&["10.244.1.2:5353"])] {
            let rules = rules([("10.96.0.10:53", rule)]);
            assert!(is_stale("10.96.0.10:53", "10.96.0.10:53", &rules));
            assert!(!is_stale("10.96.0.11:53", "10.96.0.11:53", &rules));
        }
    }

    #[test]
    fn flows_of_kube_proxy_are_left_alone_and_those_by_a_way_that_was_left_are_not() {
        let before = rules([("10.96.0.10:53", by_kernel(&["10.244.1.2:5353"]))]);
        for now in [rules([("10.96.0.10:53", by_agent(40001))]), rules([])] {
            let left = udp_ways_left(&before, &now).unwrap();
            let by = |endpoint| super::is_stale(&flow("10.96.0.10:53", endpoint), &now, &left);
            assert!(by("10.244.1.2:5353"));
            assert!(!by("10.244.1.3:5353"));
        }
    }

    #[test]
    fn a_look_is_due_only_when_ways_changed() {
        let one = || rules([("10.96.0.10:53", by_kernel(&["10.244.1.2:5353"]))]);
        let two = rules([(
            "10.96.0.10:53",
            by_kernel(&["10.244.1.2:5353", "10.244.1.3:5353"]),
        )]);
        assert_eq!(udp_ways_left(&one(), &one()), None);
        assert_eq!(udp_ways_left(&one(), &two), None);
        let left = udp_ways_left(&two, &one()).unwrap();
        let gone = (
            frontend("10.96.0.10:53"),
            "10.244.1.3:5353".parse().unwrap(),
        );
        assert_eq!(left, LeftWays::from([gone]));
        assert_eq!(udp_ways_left(&rules([]), &one()), Some(LeftWays::new()));
    }

    #[test]
    fn what_strangers_send_to_the_intercept_address_itself_is_left_alone() {
        let rules = rules([]);
        let own = format!("{INTERCEPT}:40001");
        assert!(!is_stale(&own, &format!("{INTERCEPT}:9"), &rules));
    }
}

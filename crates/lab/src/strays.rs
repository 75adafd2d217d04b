//! Packets that leave a site for anywhere but the lab's own places, and those that look for
//! services of the surroundings: name servers, port mapping, discovery by multicast.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

const TABLE: &str = "lab-strays";
/// The public ranges of the lab: hosts on the internet, the cloud, and further sites that are
/// routed (RFC 5737, RFC 2544).
const LAB_PUBLIC: &str = "203.0.113.0/24, 198.51.100.0/24, 198.18.0.0/15";
/// Ports that count wherever packets to them go: DNS, PCP and NAT-PMP (RFC 6886), SSDP, mDNS.
const TELLING_PORTS: &str = "53, 1900, 5350, 5351, 5353";

/// Packets of one kind to one place that a site's router has seen from inside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// The site whose router saw them.
    pub site: String,
    /// Where they were to go.
    pub to: IpAddr,
    /// Their protocol, by its IP number: 6 is TCP, 17 UDP.
    pub protocol: u8,
    /// The port they were to go to; 0 for protocols without.
    pub port: u16,
    /// How many there were.
    pub packets: u64,
}

/// What a [`Stray`] was after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StrayKind {
    /// A name server, whichever.
    Dns,
    /// A router that maps ports: NAT-PMP and PCP.
    PortMapping,
    /// UPnP's discovery, which comes before port mapping too.
    Ssdp,
    /// Discovery by multicast DNS, on the site's own segment.
    Mdns,
    /// Any other multicast or broadcast.
    Multicast,
    /// A private address that is not on this site: perhaps a peer's on its own site.
    Private,
    /// Somebody outside the cluster.
    Foreign,
}

impl Stray {
    /// What they were after.
    #[must_use]
    pub fn kind(&self) -> StrayKind {
        let udp = self.protocol == 17;
        match self.port {
            53 if udp || self.protocol == 6 => StrayKind::Dns,
            5350 | 5351 if udp => StrayKind::PortMapping,
            1900 if udp => StrayKind::Ssdp,
            5353 if udp => StrayKind::Mdns,
            _ if is_to_many(self.to) => StrayKind::Multicast,
            _ if is_private(self.to) => StrayKind::Private,
            _ => StrayKind::Foreign,
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            site,
            to,
            protocol,
            port,
            packets,
        } = self;
        let protocol = match protocol {
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            number => format!("protocol {number}"),
        };
        let kind = self.kind();
        write!(
            formatter,
            "{packets} packets from {site} to {to}, {protocol} port {port} ({kind:?})"
        )
    }
}

/// Where a router keeps the count.
#[derive(Debug)]
pub(crate) struct StrayCounter {
    router: Namespace,
    site: String,
}

impl StrayCounter {
    /// Begins to count on the router of `site`; `inside` and `outside` are its devices.
    pub(crate) fn begin(
        router: &Namespace,
        site: &str,
        inside: &str,
        outside: &str,
    ) -> Result<Self> {
        let counter = Self {
            router: router.clone(),
            site: site.to_owned(),
        };
        counter
            .router
            .nft(&render(inside, outside))
            .context("cannot count stray packets")?;
        Ok(counter)
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> Result<Vec<Stray>> {
        let listed = self
            .router
            .program("nft")
            .args(["--numeric", "list", "table", "inet", TABLE])
            .run()?;
        let mut counted: BTreeMap<(IpAddr, u8, u16), u64> = BTreeMap::new();
        for element in elements(&listed) {
            let (key, packets) = parse_element(element)
                .with_context(|| format!("not understood of what nft listed: {element}"))?;
            *counted.entry(key).or_default() += packets;
        }
        let strays = counted
            .into_iter()
            .map(|((to, protocol, port), packets)| Stray {
                site: self.site.clone(),
                to,
                protocol,
                port,
                packets,
            });
        Ok(strays.collect())
    }
}

/// Multicast and telling ports count when they arrive (most are never routed on), all else
/// when it is about to leave. IPv6 has no way out of a site, so that it counts on arrival.
fn render(inside: &str, outside: &str) -> String {
    let sets: String = [("v4", "ipv4_addr"), ("v6", "ipv6_addr")]
        .iter()
        .map(|(family, address)| {
            format!(
                "  set ported-{family} {{
    type {address} . inet_proto . inet_service; flags dynamic; counter; size 65535;
  }}
  set other-{family} {{
    type {address} . inet_proto; flags dynamic; counter; size 65535;
  }}
"
            )
        })
        .collect();
    format!(
        "table inet {TABLE} {{
{sets}  chain count {{
    meta l4proto {{ tcp, udp }} add @ported-v4 {{ ip daddr . meta l4proto . th dport }} return
    meta l4proto {{ tcp, udp }} add @ported-v6 {{ ip6 daddr . meta l4proto . th dport }} return
    add @other-v4 {{ ip daddr . meta l4proto }} return
    meta l4proto != ipv6-icmp add @other-v6 {{ ip6 daddr . meta l4proto }}
  }}
  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
    iifname != \"{inside}\" return
    meta l4proto {{ tcp, udp }} th dport {{ {TELLING_PORTS} }} goto count
    ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} goto count
    ip6 daddr {{ ff00::/8, 2000::/3 }} ip6 daddr != 2001:db8::/32 goto count
  }}
  chain leaving {{
    type filter hook forward priority filter - 10; policy accept;
    iifname != \"{inside}\" return
    oifname != \"{outside}\" return
    meta l4proto {{ tcp, udp }} th dport {{ {TELLING_PORTS} }} return
    ip daddr {{ {LAB_PUBLIC} }} return
    meta nfproto ipv4 goto count
  }}
}}
"
    )
}

/// The elements of all sets of a listed table: what stands in `elements = { …, … }`.
fn elements(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .split("elements = {")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .flat_map(|(inside, _)| inside.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// `ADDRESS . PROTOCOL [. PORT] counter packets N bytes M`
fn parse_element(element: &str) -> Option<((IpAddr, u8, u16), u64)> {
    let (key, counter) = element.split_once(" counter packets ")?;
    let packets = counter.split_whitespace().next()?.parse().ok()?;
    let mut parts = key.split(" . ");
    let address = parts.next()?.trim().parse().ok()?;
    let protocol = protocol_number(parts.next()?.trim())?;
    let port = match parts.next() {
        Some(port) => port.trim().parse().ok()?,
        None => 0,
    };
    Some(((address, protocol, port), packets))
}

/// Some releases of nft name the well-known ones although they are asked for numbers.
fn protocol_number(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmp" => Some(1),
        "igmp" => Some(2),
        number => number.parse().ok(),
    }
}

fn is_to_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // 100.64.0.0/10 is what providers put between themselves and homes (RFC 6598).
            let shared = first == 100 && (64..128).contains(&second);
            address.is_private() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "table inet lab-strays {
	set ported-v4 {
		type ipv4_addr . inet_proto . inet_service
		size 65535
		flags dynamic
		counter
		elements = { 192.168.1.1 . 17 . 5351 counter packets 3 bytes 90,
			     8.8.8.8 . udp . 53 counter packets 1 bytes 28 }
	}
	set other-v4 {
		elements = { 224.0.0.22 . 2 counter packets 2 bytes 80 }
	}
}
";

    #[test]
    fn what_nft_lists_is_taken_apart() {
        let parsed: Vec<_> = elements(LISTED).map(parse_element).collect();
        let key = |to: &str, protocol, port| (to.parse::<IpAddr>().unwrap(), protocol, port);
        assert_eq!(
            parsed,
            [
                Some((key("192.168.1.1", 17, 5351), 3)),
                Some((key("8.8.8.8", 17, 53), 1)),
                Some((key("224.0.0.22", 2, 0), 2)),
            ]
        );
        assert_eq!(parse_element("8.8.8.8 . nonsense"), None);
    }

    #[test]
    fn a_stray_is_sorted_by_what_it_was_after() {
        let kind = |to: &str, protocol, port| {
            let stray = Stray {
                site: "edge".to_owned(),
                to: to.parse().unwrap(),
                protocol,
                port,
                packets: 1,
            };
            stray.kind()
        };
        assert_eq!(kind("8.8.8.8", 17, 53), StrayKind::Dns);
        assert_eq!(kind("8.8.8.8", 6, 53), StrayKind::Dns);
        assert_eq!(kind("192.168.1.1", 17, 5351), StrayKind::PortMapping);
        assert_eq!(kind("239.255.255.250", 17, 1900), StrayKind::Ssdp);
        assert_eq!(kind("224.0.0.251", 17, 5353), StrayKind::Mdns);
        assert_eq!(kind("224.0.0.22", 2, 0), StrayKind::Multicast);
        assert_eq!(kind("10.96.0.1", 6, 443), StrayKind::Private);
        assert_eq!(kind("100.100.0.1", 6, 443), StrayKind::Private);
        assert_eq!(kind("9.9.9.9", 6, 443), StrayKind::Foreign);
        assert_eq!(kind("2606:4700::1", 6, 443), StrayKind::Foreign);
    }
}

//! A network segment that nodes are attached to, with a router on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;

/// The hardware address of each bridge. Without one of its own, a bridge has the lowest of
/// its ports' addresses, so that it changes with new ports and neighbours lose it.
pub(crate) const BRIDGE_HARDWARE: &str = "02:00:00:00:00:01";
/// The bridge that is the segment, and the router's device on it.
pub(crate) const BRIDGE: &str = "br0";

/// Who on a segment knows the ways to the pods of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodRoutes {
    /// The router and all nodes.
    Everywhere,
    /// Nobody: a node puts its own address in the place of its pods' (as CNI's `ipMasq`).
    Nowhere,
}

/// Where a segment's nodes get the last part of their addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    /// Their number in the lab: it is part of their pods' addresses too.
    OfLab,
    /// Their number on this segment, so that addresses of segments may be the same.
    OfSegment,
}

/// A segment: a bridge in a namespace of its own, which is also the default router (its
/// addresses end in 1). Nodes on it know the ways to each other's pods.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    pod_routes: PodRoutes,
    numbering: Numbering,
    /// How many places were given away so far.
    places: AtomicUsize,
    members: Mutex<Vec<Member>>,
}

/// A node as its neighbours on the segment know it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) namespace: Namespace,
    pub(crate) uplink_v4: Ipv4Addr,
    pub(crate) uplink_v6: Option<Ipv6Addr>,
    pub(crate) pods_v4: Ipv4Addr,
    pub(crate) pods_v6: Ipv6Addr,
}

impl Network {
    /// `v4` is the network address of a /24, `v6` that of a /64.
    pub(crate) fn create(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Self> {
        Self::make(name, (v4, v6), PodRoutes::Everywhere, Numbering::OfLab)
    }

    /// As [`Self::create`], for a site: its nodes are numbered from 1.
    pub(crate) fn of_site(
        name: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        pod_routes: PodRoutes,
    ) -> Result<Self> {
        Self::make(name, (v4, v6), pod_routes, Numbering::OfSegment)
    }

    fn make(
        name: &str,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        pod_routes: PodRoutes,
        numbering: Numbering,
    ) -> Result<Self> {
        let namespace = Namespace::create(name)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.sysctl_if_present("net.ipv6.conf.all.forwarding", "1")?;
        namespace.ip(&format!(
            "link add {BRIDGE} address {BRIDGE_HARDWARE} type bridge\n\
             link set {BRIDGE} up\n\
             address add {}/24 dev {BRIDGE}\n\
             address add {}/64 dev {BRIDGE} nodad\n",
            nth_v4(v4, 1),
            nth_v6(v6, 1)
        ))?;
        Ok(Self {
            namespace,
            v4,
            v6,
            pod_routes,
            numbering,
            places: AtomicUsize::new(0),
            members: Mutex::new(Vec::new()),
        })
    }

    /// The namespace of its router.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The router's IPv4 address on the segment.
    #[must_use]
    pub fn router_v4(&self) -> Ipv4Addr {
        nth_v4(self.v4, 1)
    }

    /// The router's IPv6 address on the segment.
    #[must_use]
    pub fn router_v6(&self) -> Ipv6Addr {
        nth_v6(self.v6, 1)
    }

    /// Addresses for the next node to join, the `number`th of the lab.
    pub(crate) fn next_addresses(&self, number: u8) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let place = self.places.fetch_add(1, Ordering::Relaxed) + 1;
        let number = match self.numbering {
            Numbering::OfLab => number,
            Numbering::OfSegment => next_number(place, "nodes on a site")?,
        };
        Ok((nth_v4(self.v4, 10 + number), nth_v6(self.v6, 10 + number)))
    }

    /// Tells router and other nodes the way to the new one's pods, and it the ways to theirs.
    pub(crate) fn join(&self, new: Member) -> Result<()> {
        let mut members = self.members()?;
        match self.pod_routes {
            PodRoutes::Everywhere => {
                self.namespace.ip(&way_to(&new, true))?;
                for old in members.iter() {
                    old.namespace.ip(&way_to(&new, old.uplink_v6.is_some()))?;
                    new.namespace.ip(&way_to(old, new.uplink_v6.is_some()))?;
                }
            }
            PodRoutes::Nowhere => new.namespace.nft(&hide_pods(&new))?,
        }
        members.push(new);
        Ok(())
    }

    /// Forgets a member: nobody here knows a way to its pods any more.
    pub(crate) fn leave(&self, namespace: &Namespace) -> Result<()> {
        let mut members = self.members()?;
        let place = self.place_of(&members, namespace)?;
        let gone = members.remove(place);
        match self.pod_routes {
            PodRoutes::Everywhere => {
                self.namespace.ip(&no_way_to(&gone, true))?;
                for other in members.iter() {
                    let v6_known = other.uplink_v6.is_some();
                    other.namespace.ip(&no_way_to(&gone, v6_known))?;
                }
            }
            PodRoutes::Nowhere => namespace.nft("delete table ip lab-pods\n")?,
        }
        Ok(())
    }

    /// Takes up the member's new address: the ways to its pods lead there, and it gets those
    /// routes again that it lost with its old one.
    pub(crate) fn readdress(&self, namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
        let mut members = self.members()?;
        let place = self.place_of(&members, namespace)?;
        members[place].uplink_v4 = address;
        let moved = members[place].clone();
        if self.pod_routes == PodRoutes::Nowhere {
            return Ok(());
        }
        let way = format!("route replace {}/24 via {address}\n", moved.pods_v4);
        self.namespace.ip(&way)?;
        let others = members.iter().enumerate();
        for (_, other) in others.filter(|(other, _)| *other != place) {
            other.namespace.ip(&way)?;
            moved.namespace.ip(&way_to(other, false))?;
        }
        Ok(())
    }

    /// An address of the segment by its last part.
    pub(crate) fn address_v4(&self, last: u8) -> Ipv4Addr {
        nth_v4(self.v4, last)
    }

    fn place_of(&self, members: &[Member], namespace: &Namespace) -> Result<usize> {
        let is_the_one = |member: &Member| member.namespace.name() == namespace.name();
        members.iter().position(is_the_one).with_context(|| {
            let (node, segment) = (namespace.name(), self.namespace.name());
            format!("{node} is not on {segment}")
        })
    }

    fn members(&self) -> Result<MutexGuard<'_, Vec<Member>>> {
        match self.members.lock() {
            Ok(members) => Ok(members),
            Err(_) => bail!("an earlier node failed to join {}", self.namespace.name()),
        }
    }
}

fn way_to(member: &Member, v6_known: bool) -> String {
    let mut lines = format!("route add {}/24 via {}\n", member.pods_v4, member.uplink_v4);
    if let Some(gateway) = member.uplink_v6.filter(|_| v6_known) {
        lines += &format!("route add {}/64 via {gateway}\n", member.pods_v6);
    }
    lines
}

/// What makes a node speak for its pods wherever nobody knows the way to them.
fn hide_pods(member: &Member) -> String {
    format!(
        "table ip lab-pods {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"eth0\" ip saddr {}/24 masquerade
  }}
}}
",
        member.pods_v4
    )
}

fn no_way_to(member: &Member, v6_known: bool) -> String {
    let mut lines = format!("route del {}/24\n", member.pods_v4);
    if v6_known && member.uplink_v6.is_some() {
        lines += &format!("route del {}/64\n", member.pods_v6);
    }
    lines
}

/// The `number`th address of a /24.
pub(crate) fn nth_v4(network: Ipv4Addr, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// The `number`th address of a /64, written so that both families' last parts look alike.
pub(crate) fn nth_v6(network: Ipv6Addr, number: u8) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, _] = network.segments();
    let digits = u16::from_str_radix(&number.to_string(), 16).unwrap_or(u16::from(number));
    Ipv6Addr::new(a, b, c, d, e, f, g, digits)
}

/// Up to 250 of a kind have an address in a /24.
pub(crate) fn next_number(taken: usize, kind: &str) -> Result<u8> {
    u8::try_from(taken)
        .ok()
        .filter(|number| *number < 240)
        .with_context(|| format!("a lab has at most 240 {kind}"))
}

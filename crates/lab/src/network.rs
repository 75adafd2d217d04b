//! A network segment that nodes are attached to, with a router on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;

/// The hardware address of each bridge. Without one of its own, a bridge has the lowest of
/// its ports' addresses, so that it changes with new ports and neighbours lose it.
pub(crate) const BRIDGE_HARDWARE: &str = "02:00:00:00:00:01";

/// A segment: a bridge in a namespace of its own, which is also the default router (its
/// addresses end in 1). Nodes on it know the ways to each other's pods.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
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
        let namespace = Namespace::create(name)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.sysctl_if_present("net.ipv6.conf.all.forwarding", "1")?;
        namespace.ip(&format!(
            "link add br0 address {BRIDGE_HARDWARE} type bridge\n\
             link set br0 up\n\
             address add {}/24 dev br0\n\
             address add {}/64 dev br0 nodad\n",
            nth_v4(v4, 1),
            nth_v6(v6, 1)
        ))?;
        Ok(Self {
            namespace,
            v4,
            v6,
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

    /// The IPv4 address of the `number`th node of the lab, were it on this segment.
    pub(crate) fn address_v4(&self, number: u8) -> Ipv4Addr {
        nth_v4(self.v4, 10 + number)
    }

    /// The IPv6 address of the `number`th node of the lab, were it on this segment.
    pub(crate) fn address_v6(&self, number: u8) -> Ipv6Addr {
        nth_v6(self.v6, 10 + number)
    }

    /// Tells router and other nodes the way to the new one's pods, and it the ways to theirs.
    pub(crate) fn join(&self, new: Member) -> Result<()> {
        let Ok(mut members) = self.members.lock() else {
            bail!("an earlier node failed to join {}", self.namespace.name());
        };
        self.namespace.ip(&way_to(&new, true))?;
        for old in members.iter() {
            old.namespace.ip(&way_to(&new, old.uplink_v6.is_some()))?;
            new.namespace.ip(&way_to(old, new.uplink_v6.is_some()))?;
        }
        members.push(new);
        Ok(())
    }
}

fn way_to(member: &Member, v6_known: bool) -> String {
    let mut lines = format!("route add {}/24 via {}\n", member.pods_v4, member.uplink_v4);
    if let Some(gateway) = member.uplink_v6.filter(|_| v6_known) {
        lines += &format!("route add {}/64 via {gateway}\n", member.pods_v6);
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

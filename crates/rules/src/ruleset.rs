//! What shall be in the kernel: the rules of one family, as plain data.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edgemesh_catalog::{Protocol, SharedMap};
use edgemesh_plan::Frontend;
use ipnet::IpNet;

use crate::{Extensions, Family, Gate, KernelPath, Mark, PortalLayout, RuleComment};

/// The rules of one family. Both hooks have the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    intercept: IpAddr,
    refusal_port: u16,
    tcp_port: Option<u16>,
    mark: Mark,
    gate: Gate,
    extensions: Extensions,
    layout: PortalLayout,
    pods: Arc<[IpNet]>,
    leaves_ports: bool,
    portals: SharedMap<Frontend, PortalRule>,
    addresses: PortalAddresses,
    /// How many portals the kernel has a part in.
    kernel_paths: usize,
    /// How many portals lead to each pod of this node by the kernel.
    hairpins: Arc<BTreeMap<IpAddr, u32>>,
}

/// The addresses of portals, each with how many portals it has.
pub type PortalAddresses = SharedMap<IpAddr, u32>;

/// Where the traffic of one portal is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalRule {
    /// Names the service port in the rule.
    pub comment: RuleComment,
    /// Port on the intercept address: a listener of the agent, or the refusal port.
    pub to_port: u16,
    /// How the kernel serves it, or has a part in it; none: all goes to that port.
    pub kernel: Option<Box<KernelPath>>,
}

/// A portal that no rule of this family can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// The portal's address is of the other family.
    #[error("{frontend} does not belong into the {family} rules")]
    Family {
        /// The portal.
        frontend: Frontend,
        /// The family of the rules.
        family: Family,
    },
    /// The kernel cannot send it to addresses of the other family.
    #[error("{frontend} can't be sent to endpoints that are not of {family}")]
    Endpoints {
        /// The portal.
        frontend: Frontend,
        /// The family of the rules.
        family: Family,
    },
    /// Only TCP and UDP are intercepted.
    #[error("{0} can't be intercepted: only TCP and UDP can")]
    Protocol(Frontend),
}

impl Ruleset {
    /// No portal yet.
    ///
    /// `intercept` is the agent's own address, which also sets the family;
    /// `refusal_port` is a port of it where nothing answers, so that the kernel refuses
    /// what is sent there; `mark` is the one that the agent's own sockets carry.
    #[must_use]
    pub fn new(intercept: IpAddr, refusal_port: u16, mark: Mark) -> Self {
        Self {
            intercept,
            refusal_port,
            tcp_port: None,
            mark,
            gate: Gate::None,
            extensions: Extensions::default(),
            layout: PortalLayout::default(),
            pods: Arc::default(),
            leaves_ports: false,
            portals: SharedMap::default(),
            addresses: SharedMap::default(),
            kernel_paths: 0,
            hairpins: Arc::default(),
        }
    }

    /// The same rules on a node whose pods have these addresses. What comes from elsewhere
    /// and is sent on by the kernel is masqueraded, as kube-proxy does by its
    /// `--detect-local-mode=NodeCIDR`; without any, only what a pod sends to itself and what
    /// the host sends is. Networks of the other family are left out.
    #[must_use]
    pub fn with_pods(mut self, pods: impl IntoIterator<Item = IpNet>) -> Self {
        let family = self.family();
        self.pods = pods
            .into_iter()
            .filter(|network| Family::of(network.addr()) == family)
            .map(|network| network.trunc())
            .collect();
        self
    }

    /// The same rules, where the agent forwards the TCP connections of any portal at this port of
    /// its own address. Among many portals, one whose own rule is still to come is then its.
    #[must_use]
    pub fn forwarding_tcp_at(mut self, port: u16) -> Self {
        self.tcp_port = Some(port);
        self
    }

    /// The same rules, where some ports of the portals' addresses are somebody else's, or none
    /// are. Where all are ours, a process of the host that only the last-resort routes lead to
    /// such an address is refused at any other port.
    #[must_use]
    pub fn leaving_ports(mut self, any: bool) -> Self {
        self.leaves_ports = any;
        self
    }

    /// The same rules with the portals of `earlier`, rules of the same family, which they share
    /// until one of them is changed. What differs from an earlier ruleset is then found without a
    /// look at all the others.
    #[must_use]
    pub fn with_portals_of(mut self, earlier: &Self) -> Self {
        self.portals = earlier.portals.clone();
        self.addresses = earlier.addresses.clone();
        self.hairpins = Arc::clone(&earlier.hairpins);
        self.kernel_paths = earlier.kernel_paths;
        self.extensions.kernel_path = self.kernel_paths > 0;
        self
    }

    /// The same rules without any portal.
    pub(crate) fn without_portals(&self) -> Self {
        let mut rules = Self {
            portals: SharedMap::default(),
            addresses: SharedMap::default(),
            kernel_paths: 0,
            hairpins: Arc::default(),
            ..self.clone()
        };
        rules.extensions.kernel_path = false;
        rules
    }

    /// Adds a portal, or changes where it leads.
    ///
    /// # Errors
    ///
    /// When no rule of this family can serve it.
    pub fn insert(&mut self, frontend: Frontend, rule: PortalRule) -> Result<(), Misplaced> {
        let family = self.family();
        if Family::of(frontend.ip) != family {
            return Err(Misplaced::Family { frontend, family });
        }
        if rule
            .kernel
            .as_ref()
            .is_some_and(|path| path.family() != family)
        {
            return Err(Misplaced::Endpoints { frontend, family });
        }
        match frontend.protocol {
            Protocol::Tcp | Protocol::Udp => {
                for pod in rule.kernel.iter().flat_map(|path| path.hairpins()) {
                    *Arc::make_mut(&mut self.hairpins).entry(pod).or_default() += 1;
                }
                self.kernel_paths += usize::from(rule.kernel.is_some());
                match self.portals.insert(frontend, rule) {
                    Some(before) => self.forget(&before),
                    None => self.count_at(frontend.ip, 1),
                }
                self.extensions.kernel_path |= self.kernel_paths > 0;
                Ok(())
            }
            Protocol::Sctp => Err(Misplaced::Protocol(frontend)),
        }
    }

    /// Takes a portal out.
    pub fn remove(&mut self, frontend: &Frontend) -> Option<PortalRule> {
        let rule = self.portals.remove(frontend)?;
        self.forget(&rule);
        self.count_at(frontend.ip, -1);
        Some(rule)
    }

    /// An address has so many portals more than it had.
    fn count_at(&mut self, ip: IpAddr, more: i32) {
        let before = self.addresses.get(&ip).copied().unwrap_or_default();
        match before.saturating_add_signed(more) {
            0 => self.addresses.remove(&ip),
            portals => self.addresses.insert(ip, portals),
        };
    }

    /// A rule is none of these any more.
    fn forget(&mut self, rule: &PortalRule) {
        self.kernel_paths -= usize::from(rule.kernel.is_some());
        if self.kernel_paths == 0 {
            self.extensions.kernel_path = false;
        }
        for pod in rule.kernel.iter().flat_map(|path| path.hairpins()) {
            let hairpins = Arc::make_mut(&mut self.hairpins);
            if let Some(portals) = hairpins.get_mut(&pod) {
                *portals -= 1;
                if *portals == 0 {
                    hairpins.remove(&pod);
                }
            }
        }
    }

    /// The family of all its rules.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.intercept)
    }

    /// The agent's own address, to which portals lead.
    #[must_use]
    pub fn intercept(&self) -> IpAddr {
        self.intercept
    }

    /// Where the kernel refuses whatever is sent there.
    #[must_use]
    pub fn refused_at(&self) -> SocketAddr {
        SocketAddr::new(self.intercept, self.refusal_port)
    }

    /// Where the agent forwards the TCP connections of any portal, if it does.
    pub(crate) fn tcp_forwarded_at(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.intercept, self.tcp_port?))
    }

    /// The mark of the agent's own traffic.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The same rules with another gate before the portals. [`Backend`](crate::Backend)
    /// chooses it, whatever is given.
    #[must_use]
    pub fn gated(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// What becomes of new connections while no agent lives.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate
    }

    /// The same rules made of other extensions of iptables.
    /// [`Backend`](crate::Backend) chooses them, whatever is given.
    #[must_use]
    pub fn with_extensions(mut self, extensions: Extensions) -> Self {
        self.extensions = extensions;
        self
    }

    /// What of iptables the rules are made of.
    #[must_use]
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// The same rules laid out otherwise, with iptables. [`Backend`](crate::Backend) chooses
    /// that, whatever is given.
    #[must_use]
    pub fn laid_out(mut self, layout: PortalLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Which chains of iptables the rules of portals stand in.
    #[must_use]
    pub fn layout(&self) -> PortalLayout {
        self.layout
    }

    /// The networks of this node's pods; empty where they are not known.
    #[must_use]
    pub fn pods(&self) -> &[IpNet] {
        &self.pods
    }

    /// Whether some ports of the portals' addresses are somebody else's.
    #[must_use]
    pub fn leaves_ports(&self) -> bool {
        self.leaves_ports
    }

    /// The pods of this node to which the kernel sends connections, sorted.
    pub fn hairpins(&self) -> impl Iterator<Item = IpAddr> {
        self.hairpins.keys().copied()
    }

    /// Whether the kernel sends connections to this pod of the node.
    #[must_use]
    pub fn is_hairpin(&self, pod: IpAddr) -> bool {
        self.hairpins.contains_key(&pod)
    }

    /// The portals.
    #[must_use]
    pub fn portals(&self) -> &SharedMap<Frontend, PortalRule> {
        &self.portals
    }

    /// The portals' addresses: host processes must have a route to them.
    #[must_use]
    pub fn addresses(&self) -> &PortalAddresses {
        &self.addresses
    }

    /// Where `rule` sends traffic to.
    #[must_use]
    pub fn destination(&self, rule: &PortalRule) -> SocketAddr {
        SocketAddr::new(self.intercept, rule.to_port)
    }

    /// Whether the rules that stand before the portals are the same in both.
    pub(crate) fn same_fixed_rules(&self, other: &Self) -> bool {
        let of = |rules: &Self| {
            (
                rules.mark,
                rules.gate,
                rules.refused_at(),
                rules.tcp_port,
                rules.leaves_ports,
            )
        };
        of(self) == of(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(ip: &str, protocol: Protocol) -> Frontend {
        Frontend {
            ip: ip.parse().unwrap(),
            protocol,
            port: 80,
        }
    }

    fn web() -> PortalRule {
        PortalRule {
            comment: RuleComment::new("default/web:http"),
            to_port: 20007,
            kernel: None,
        }
    }

    #[test]
    fn a_portal_of_the_other_family_or_of_sctp_is_not_taken() {
        let mut rules = Ruleset::new("169.254.96.16".parse().unwrap(), 20008, Mark::AGENT);
        let v6 = frontend("fd00::1", Protocol::Tcp);
        assert_eq!(
            rules.insert(v6, web()).unwrap_err().to_string(),
            "[fd00::1]:80/tcp does not belong into the IPv4 rules"
        );
        let sctp = frontend("10.96.0.1", Protocol::Sctp);
        assert_eq!(
            rules.insert(sctp, web()).unwrap_err().to_string(),
            "10.96.0.1:80/sctp can't be intercepted: only TCP and UDP can"
        );
        assert!(rules.portals().is_empty());
    }
}

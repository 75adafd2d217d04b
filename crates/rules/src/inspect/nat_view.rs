//! A nat table by portal: which rule of ours and which of kube-proxy's is there for it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use crate::inspect::kernel_path_view::{KernelPathView, MasqueradeFound, PortalLeads, SentTo};
use crate::inspect::standing_rule::{StandingRule, target};
use crate::iptables::own_rule::{OwnRule, recognise};
use crate::iptables::service_chain::PortalTarget;
use crate::iptables::words::Words;
use crate::{Bucket, KUBE_SERVICES, OwnChain};

/// `PREROUTING` (pods and strangers) or `OUTPUT` (the host's own processes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// Our jump, the first of them.
    pub own_jump: Option<StandingRule>,
    /// kube-proxy's jump, the first of them.
    pub kube_jump: Option<StandingRule>,
    /// Rules of others that stand before both.
    pub before: Vec<StandingRule>,
    /// How many rules there are in all.
    pub rules: usize,
}

/// A rule of ours for a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalFound {
    /// Where it leads.
    pub to: PortalLeads,
    /// Whether the kernel refuses what is sent there.
    pub refused: bool,
    /// The service port that it names.
    pub comment: String,
    /// The rule.
    pub rule: StandingRule,
}

/// A rule of kube-proxy's for a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeRule {
    /// What it does.
    pub action: KubeAction,
    /// The service port that it names.
    pub service_port: String,
    /// The rule.
    pub rule: StandingRule,
}

/// What kube-proxy does with a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeAction {
    /// Sends it to an endpoint.
    Serves,
    /// Refuses it for want of endpoints (a rule in the filter table).
    Refuses,
}

/// What one nat table holds, by portal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatView {
    hooks: [Hook; 2],
    own: [BTreeMap<Frontend, PortalFound>; 2],
    /// In the chains that both hooks' chains lead to, by the portal's address.
    by_address: BTreeMap<Frontend, PortalFound>,
    /// The rules of the hooks' chains that lead there.
    entries: [BTreeMap<Bucket, StandingRule>; 2],
    unknown: [Vec<StandingRule>; 2],
    kube: BTreeMap<Frontend, KubeRule>,
    chains: BTreeSet<String>,
    refused_at: Option<SocketAddr>,
    kernel_path: KernelPathView,
}

impl NatView {
    /// Reads what `iptables-save --counters` prints of the tables nat and filter.
    #[must_use]
    pub fn from_saved(nat: &str, filter: &str) -> Self {
        let mut view = Self::default();
        view.read("nat", nat);
        view.read("filter", filter);
        view
    }

    /// The hook that leads to a chain of ours.
    #[must_use]
    pub fn hook(&self, chain: OwnChain) -> &Hook {
        &self.hooks[chain.index()]
    }

    /// Our rule for a portal in one of our chains, or in the one that the last bits of its
    /// address pick, if that chain leads there.
    #[must_use]
    pub fn own_rule(&self, chain: OwnChain, frontend: &Frontend) -> Option<&PortalFound> {
        self.own[chain.index()].get(frontend).or_else(|| {
            self.entry(chain, frontend)?;
            self.by_address.get(frontend)
        })
    }

    /// The rule of one of our chains by which it comes to `found`, our rule for a portal: that
    /// rule itself, or the one that leads to its chain. Connections of both hooks come by a rule
    /// that another leads to, and count together there.
    #[must_use]
    pub fn led_by<'v>(&'v self, chain: OwnChain, found: &'v PortalFound) -> &'v StandingRule {
        if found.rule.chain == chain.name() {
            return &found.rule;
        }
        let bucket = Bucket::by_name(&found.rule.chain);
        bucket
            .and_then(|bucket| self.entries[chain.index()].get(&bucket))
            .unwrap_or(&found.rule)
    }

    fn entry(&self, chain: OwnChain, frontend: &Frontend) -> Option<&StandingRule> {
        self.entries[chain.index()].get(&Bucket::of(frontend.ip))
    }

    /// To whom the kernel sends the connections that a rule of ours takes.
    #[must_use]
    pub fn sent_to(&self, found: &PortalFound) -> Vec<SentTo> {
        let is_agent = |to: SocketAddr| self.refused_at.is_some_and(|at| at.ip() == to.ip());
        match &found.to {
            PortalLeads::Into(chain) => self.kernel_path.sent_by(chain, is_agent),
            PortalLeads::To(address) => vec![SentTo {
                address: *address,
                is_agent: is_agent(*address),
                connections: found.rule.packets,
                rule: found.rule.clone(),
            }],
        }
    }

    /// The chain by which what the kernel sends to endpoints is masqueraded where it must be.
    #[must_use]
    pub fn masquerade(&self) -> &MasqueradeFound {
        &self.kernel_path.masquerade
    }

    /// How many portals one of our chains has rules for, or leads to.
    #[must_use]
    pub fn own_portals(&self, chain: OwnChain) -> usize {
        let led_to = self.by_address.keys();
        let led_to = led_to.filter(|frontend| self.entry(chain, frontend).is_some());
        self.own[chain.index()].len() + led_to.count()
    }

    /// Rules in one of our chains that are for no portal and for no traffic of our own: the
    /// gate that lets everything pass while no agent lives, and strangers.
    #[must_use]
    pub fn other_own_rules(&self, chain: OwnChain) -> &[StandingRule] {
        &self.unknown[chain.index()]
    }

    /// kube-proxy's rule for a portal.
    #[must_use]
    pub fn kube_rule(&self, frontend: &Frontend) -> Option<&KubeRule> {
        self.kube.get(frontend)
    }

    /// Whether the nat table has a chain.
    #[must_use]
    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.contains(name)
    }

    /// The names of all chains of the nat table, sorted.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().map(String::as_str)
    }

    /// Every portal that we or kube-proxy have a rule for, with the name of its service port,
    /// sorted by frontend.
    pub fn portals(&self) -> impl Iterator<Item = (&Frontend, &str)> {
        let own = self.own.iter().flatten().chain(&self.by_address);
        let kube = self.kube.iter();
        own.map(|(frontend, found)| (frontend, found.comment.as_str()))
            .chain(kube.map(|(frontend, rule)| (frontend, rule.service_port.as_str())))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
    }

    /// Takes in what `iptables-save --counters` printed of a table.
    pub(crate) fn read(&mut self, table: &str, text: &str) {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':').filter(|_| table == "nat") {
                let name = chain.split(' ').next().unwrap_or_default();
                self.chains.insert(name.to_owned());
            }
            let Some((packets, chain, spec)) = rule(line) else {
                continue;
            };
            let place = places.entry(chain).or_insert(0);
            *place += 1;
            let concerns_us = OwnChain::by_name(chain).is_some()
                || Bucket::by_name(chain).is_some()
                || OwnChain::by_hook(chain).is_some()
                || KernelPathView::concerns(chain)
                || chain == KUBE_SERVICES;
            if concerns_us {
                let rule = StandingRule {
                    chain: chain.to_owned(),
                    place: *place,
                    text: spec.to_owned(),
                    packets,
                };
                self.take_in(table, rule);
            }
        }
        // The refusal port is told by a rule that may stand behind those that lead there.
        if let Some(at) = self.refused_at {
            let own = self.own.iter_mut().chain([&mut self.by_address]);
            for found in own.flat_map(BTreeMap::values_mut) {
                found.refused = found.to == PortalLeads::To(at);
            }
        }
    }

    fn take_in(&mut self, table: &str, rule: StandingRule) {
        if rule.chain == KUBE_SERVICES {
            self.take_in_kube(table, rule);
        } else if table != "nat" {
            // Only kube-proxy refuses in the filter table.
        } else if let Some(chain) = OwnChain::by_name(&rule.chain) {
            self.take_in_own(chain, rule);
        } else if let Some(bucket) = Bucket::by_name(&rule.chain) {
            self.take_in_by_address(bucket, rule);
        } else if let Some(chain) = OwnChain::by_hook(&rule.chain) {
            self.hooks[chain.index()].take_in(chain, rule);
        } else {
            self.kernel_path.take_in(rule);
        }
    }

    fn take_in_own(&mut self, chain: OwnChain, rule: StandingRule) {
        match recognise(&rule.text) {
            // Of several the first one counts.
            Some(OwnRule::Portal {
                frontend,
                to,
                comment,
            }) => {
                let comment = comment.into_owned();
                self.own[chain.index()]
                    .entry(frontend)
                    .or_insert(PortalFound::new(to, comment, rule));
            }
            Some(OwnRule::ByAddress(_, bucket)) => {
                self.entries[chain.index()].entry(bucket).or_insert(rule);
            }
            // While no agent lives it refuses, as the listener that is gone would.
            Some(
                OwnRule::OwnTraffic(_)
                | OwnRule::NoPort { .. }
                | OwnRule::RefusedWhileDead { .. }
                | OwnRule::ForNoPortal(_)
                | OwnRule::ThroughPortal
                | OwnRule::LetPass
                | OwnRule::NotLetPass(_)
                | OwnRule::RuleToCome { .. },
            ) => {}
            Some(OwnRule::NotThroughPortal { refused_at, .. }) => {
                self.refused_at = Some(refused_at);
            }
            Some(OwnRule::LeftWhileDead(_)) | None => self.unknown[chain.index()].push(rule),
        }
    }

    fn take_in_by_address(&mut self, bucket: Bucket, rule: StandingRule) {
        if let Some(OwnRule::Portal {
            frontend,
            to,
            comment,
        }) = recognise(&rule.text)
            && Bucket::of(frontend.ip) == bucket
        {
            let comment = comment.into_owned();
            self.by_address
                .entry(frontend)
                .or_insert(PortalFound::new(to, comment, rule));
        }
    }

    fn take_in_kube(&mut self, table: &str, rule: StandingRule) {
        let Some(seen) = Seen::of(&rule.text) else {
            return;
        };
        let action = match (table, seen.target.as_str()) {
            ("nat", target) if target.starts_with("KUBE-SVC-") => KubeAction::Serves,
            ("nat", target) if target.starts_with("KUBE-SVL-") => KubeAction::Serves,
            ("filter", "REJECT" | "DROP") => KubeAction::Refuses,
            _ => return,
        };
        self.kube.entry(seen.frontend).or_insert(KubeRule {
            action,
            service_port: seen.service_port,
            rule,
        });
    }
}

impl PortalFound {
    fn new(to: PortalTarget, comment: String, rule: StandingRule) -> Self {
        Self {
            to: match to {
                PortalTarget::Address(address) => PortalLeads::To(address),
                PortalTarget::Chain(chain) => PortalLeads::Into(chain),
            },
            refused: false,
            comment,
            rule,
        }
    }
}

impl Hook {
    fn take_in(&mut self, chain: OwnChain, rule: StandingRule) {
        self.rules += 1;
        let target = target(&rule.text);
        if target.as_deref() == Some(chain.name()) {
            self.own_jump.get_or_insert(rule);
        } else if target.as_deref() == Some(KUBE_SERVICES) {
            self.kube_jump.get_or_insert(rule);
        } else if self.own_jump.is_none() && self.kube_jump.is_none() {
            self.before.push(rule);
        }
    }
}

/// Counters, chain and the rest of a rule.
fn rule(line: &str) -> Option<(u64, &str, &str)> {
    let (packets, rest) = match line.strip_prefix('[') {
        Some(counted) => {
            let (counters, rest) = counted.split_once("] ")?;
            (counters.split(':').next()?.parse().ok()?, rest)
        }
        None => (0, line),
    };
    let (chain, spec) = rest
        .strip_prefix("-A ")?
        .split_once(' ')
        .unwrap_or((rest.strip_prefix("-A ")?, ""));
    Some((packets, chain, spec))
}

/// What a rule of kube-proxy's says of its portal.
struct Seen {
    frontend: Frontend,
    service_port: String,
    target: String,
}

impl Seen {
    /// None for rules that are for no portal, or under a condition on the sender.
    fn of(spec: &str) -> Option<Self> {
        let (mut ip, mut protocol, mut port) = (None, None, None);
        let (mut comment, mut target) = (String::new(), None);
        let mut words = Words::of(spec);
        while let Some(word) = words.next() {
            match word.as_ref() {
                "-d" => ip = single_address(&words.next()?),
                "-p" => {
                    protocol = match words.next()?.as_ref() {
                        "tcp" => Some(Protocol::Tcp),
                        "udp" => Some(Protocol::Udp),
                        "sctp" => Some(Protocol::Sctp),
                        _ => None,
                    };
                }
                "--dport" => port = words.next()?.parse().ok(),
                "--comment" => comment = words.next()?.into_owned(),
                "-j" => target = words.next().map(std::borrow::Cow::into_owned),
                "-s" => return None,
                _ => {}
            }
        }
        Some(Self {
            frontend: Frontend {
                ip: ip?,
                protocol: protocol?,
                port: port?,
            },
            // "default/web:http cluster IP", "default/web:http has no endpoints".
            service_port: comment.split(' ').next().unwrap_or_default().to_owned(),
            target: target?,
        })
    }
}

fn single_address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let whole = match address {
        IpAddr::V4(_) => matches!(prefix, "" | "32"),
        IpAddr::V6(_) => matches!(prefix, "" | "128"),
    };
    whole.then_some(address)
}

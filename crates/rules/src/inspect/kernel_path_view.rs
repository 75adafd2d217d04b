//! What a nat table holds for portals that the kernel serves. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::chain_names::{MASQUERADE, POSTROUTING, SERVICE_PREFIX};
use crate::inspect::standing_rule::{StandingRule, target};
use crate::iptables::options::Options;

/// Where the rule of a portal leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortalLeads {
    /// To the agent, or to the only endpoint.
    To(SocketAddr),
    /// Into the chain that shares connections among endpoints.
    Into(String),
}

/// Somebody to whom the kernel sends connections of a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentTo {
    /// An endpoint, or the agent at its own address.
    pub address: SocketAddr,
    /// Whether it is the agent.
    pub is_agent: bool,
    /// Connections sent there, whichever chain they came from. All start at nought when the
    /// chain is made anew, as it is when endpoints come or go.
    pub connections: u64,
    /// The rule that does it; the first one, where there is another for returning clients.
    pub rule: StandingRule,
}

/// `EDGEMESH-POSTROUTING`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasqueradeFound {
    /// The jump to it, the first of them.
    pub jump: Option<StandingRule>,
    /// Its rules, in their order.
    pub rules: Vec<StandingRule>,
}

/// The chains that serve portals in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelPathView {
    services: BTreeMap<String, Vec<(SocketAddr, StandingRule)>>,
    pub(super) masquerade: MasqueradeFound,
}

impl KernelPathView {
    /// Whether a chain belongs here, at least in part.
    pub(super) fn concerns(chain: &str) -> bool {
        chain.starts_with(SERVICE_PREFIX) || chain == MASQUERADE || chain == POSTROUTING
    }

    pub(super) fn take_in(&mut self, rule: StandingRule) {
        match rule.chain.as_str() {
            POSTROUTING if target(&rule.text).as_deref() == Some(MASQUERADE) => {
                self.masquerade.jump.get_or_insert(rule);
            }
            MASQUERADE => self.masquerade.rules.push(rule),
            service if service.starts_with(SERVICE_PREFIX) => {
                if let Some(to) = Options::read(&rule.text).and_then(|options| options.to) {
                    let rules = self.services.entry(service.to_owned()).or_default();
                    rules.push((to, rule));
                }
            }
            _ => {}
        }
    }

    /// To whom a chain sends connections, in the order of its rules.
    pub(super) fn sent_by(
        &self,
        chain: &str,
        is_agent: impl Fn(SocketAddr) -> bool,
    ) -> Vec<SentTo> {
        let mut sent: Vec<SentTo> = Vec::new();
        for (address, rule) in self.services.get(chain).into_iter().flatten() {
            match sent.iter_mut().find(|sent| sent.address == *address) {
                Some(known) => known.connections += rule.packets,
                None => sent.push(SentTo {
                    address: *address,
                    is_agent: is_agent(*address),
                    connections: rule.packets,
                    rule: rule.clone(),
                }),
            }
        }
        sent
    }
}

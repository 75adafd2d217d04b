//! How the table serves a portal: what it takes of elements, chains and sets. Pure.
//!
//! | portal | elements | chains and sets |
//! | --- | --- | --- |
//! | one destination (the agent, or the kernel's only endpoint) | it, in `portals` | none |
//! | several | the agent in `portals`; `among-N` in `shared`; the kernel's endpoints in `endpoints` | `among-N`, one for all portals that choose among N |
//! | several, and clients keep theirs | the agent in `portals`; a chain of its own in `shared`; its endpoints' chains in `first-choices` | its chain; a chain and a set of clients for each endpoint |
//!
//! `among-N` draws a number below N and looks the portal's endpoint of that number up. What it
//! does not find there goes on to `portals`, so to the agent: its part takes no element, and a
//! packet that comes in the moment of a change is never left over. All portals share the
//! maps, because chains and maps of their own would cost each of ten thousand portals more memory
//! than its endpoints take, and the kernel a walk through all of them for each that comes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::element::{Element, Key, Leads};
use super::rule::Rule;
use super::sticky_chains::Sticky;
use crate::{Family, KernelPath, PortalRule, Ruleset, Sharing};

/// Who gets a portal's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving<'a> {
    /// One destination.
    Whole(SocketAddr),
    /// The endpoints have a part of this many; the rest is the agent's.
    Among(&'a KernelPath, u32),
    /// The endpoints, each client its own for so long.
    Sticky(&'a KernelPath, Duration),
}

impl<'a> Serving<'a> {
    pub(super) fn of(rules: &Ruleset, rule: &'a PortalRule) -> Self {
        let Some(path) = rule.kernel.as_deref() else {
            return Serving::Whole(rules.destination(rule));
        };
        let endpoints = u32::try_from(path.endpoints().len()).unwrap_or(u32::MAX);
        match (path.sharing(), path.endpoints()) {
            (Sharing::Alone | Sharing::Sticky(_), [only]) => Serving::Whole(only.address),
            (Sharing::Alone, _) => Serving::Among(path, endpoints),
            (Sharing::WithAgent(others), _) => {
                Serving::Among(path, endpoints.saturating_add(others.get()))
            }
            (Sharing::Sticky(silence), _) => Serving::Sticky(path, silence),
        }
    }
}

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
}

/// All that a portal takes in the table, but for what others take, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) elements: BTreeMap<Key, Element>,
    /// Chains by name; each refers to later ones only.
    pub(super) chains: BTreeMap<String, Chain>,
    /// Sets of clients by name, and how long they remember.
    pub(super) sets: BTreeMap<String, Duration>,
}

impl Parts {
    pub(super) fn of(rules: &Ruleset, frontend: &Frontend, rule: &PortalRule) -> Self {
        let mut parts = Self::default();
        let comment = Some(rule.comment.clone());
        let (to, path, into) = match Serving::of(rules, rule) {
            Serving::Whole(to) => (to, None, None),
            Serving::Among(path, slots) => {
                let into = among_name(slots);
                (rules.destination(rule), Some(path), Some(into))
            }
            Serving::Sticky(path, silence) => {
                let sticky = Sticky {
                    frontend,
                    path,
                    silence,
                    comment: &rule.comment,
                };
                sticky.put_into(&mut parts);
                (rules.destination(rule), None, Some(sticky.chain_name()))
            }
        };
        parts.add(Element {
            key: Key::Portal(*frontend),
            leads: Leads::To(to),
            comment: comment.clone(),
        });
        for (number, endpoint) in (0..).zip(path.iter().flat_map(|path| path.numbered())) {
            parts.add(Element {
                key: Key::Endpoint(*frontend, number),
                leads: Leads::To(endpoint),
                comment: None,
            });
        }
        if let Some(chain) = into {
            parts.add(Element {
                key: Key::Shared(*frontend),
                leads: Leads::Into(chain),
                comment,
            });
        }
        parts
    }

    pub(super) fn add(&mut self, element: Element) {
        self.elements.insert(element.key, element);
    }
}

/// Among how many destinations a portal chooses, where all that do share a chain.
pub(super) fn slots(rules: &Ruleset, rule: &PortalRule) -> Option<u32> {
    match Serving::of(rules, rule) {
        Serving::Among(_, slots) => Some(slots),
        Serving::Whole(_) | Serving::Sticky(..) => None,
    }
}

/// Whether any portal chooses among so many destinations.
pub(super) fn any_among(rules: &Ruleset, slots: u32) -> bool {
    let mut portals = rules.portals().values();
    portals.any(|rule| self::slots(rules, rule) == Some(slots))
}

/// The chain in which portals choose among so many destinations.
pub(super) fn among(family: Family, slots: u32) -> Chain {
    Chain {
        name: among_name(slots),
        rules: vec![Rule::among(family, slots)],
    }
}

const AMONG: &str = "among-";

fn among_name(slots: u32) -> String {
    format!("{AMONG}{slots}")
}

/// Among how many destinations the chain of this name chooses.
pub(super) fn slots_of(chain: &str) -> Option<u32> {
    chain.strip_prefix(AMONG)?.parse().ok()
}

/// What names a portal in a name: nft has no colons in names.
pub(super) fn name_of(frontend: &Frontend) -> String {
    let protocol = match frontend.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{}/{protocol}/{}", name_of_ip(frontend.ip), frontend.port)
}

/// What names an address in a name.
pub(super) fn name_of_ip(ip: IpAddr) -> String {
    ip.to_string().replace(':', "-")
}

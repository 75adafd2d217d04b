//! A ruleset as the chains that hold its portals. Pure.

use std::collections::BTreeMap;

use edgemesh_plan::Frontend;

use crate::iptables::own_rule::{OwnRule, entry_rules, portal_rule};
use crate::portal_layout::{Bucket, PortalChain, PortalLayout};
use crate::{OwnChain, PortalRule, Ruleset};

/// What a chain shall hold.
#[derive(Debug)]
pub(crate) struct ChainContent<'r> {
    pub(crate) chain: PortalChain,
    /// What stands first, in this order.
    pub(crate) head: Vec<OwnRule<'static>>,
    /// Whose rules follow, in any order: no packet is for two of them.
    pub(crate) portals: Portals<'r>,
    rules: &'r Ruleset,
}

/// All chains that hold portals or lead to those that do: those of the hooks first.
pub(crate) fn portal_chains(rules: &Ruleset) -> Vec<ChainContent<'_>> {
    let mut portals: BTreeMap<PortalChain, Portals<'_>> = BTreeMap::new();
    for (frontend, rule) in rules.portals() {
        for chain in chains_of(rules.layout(), frontend) {
            portals.entry(chain).or_default().push((frontend, rule));
        }
    }
    OwnChain::BOTH
        .map(PortalChain::Hook)
        .into_iter()
        .chain(rules.layout().buckets().map(PortalChain::Bucket))
        .map(|chain| ChainContent {
            chain,
            head: head(rules, chain),
            portals: portals.remove(&chain).unwrap_or_default(),
            rules,
        })
        .collect()
}

type Portals<'r> = Vec<(&'r Frontend, &'r PortalRule)>;

fn head(rules: &Ruleset, chain: PortalChain) -> Vec<OwnRule<'static>> {
    match chain {
        PortalChain::Hook(chain) => entry_rules(rules, chain),
        PortalChain::Bucket(_) => Vec::new(),
    }
}

/// The chains that hold the rule of a portal.
pub(crate) fn chains_of(
    layout: PortalLayout,
    frontend: &Frontend,
) -> impl Iterator<Item = PortalChain> + use<> {
    let (both, bucket) = match layout {
        PortalLayout::InBoth => (Some(OwnChain::BOTH.map(PortalChain::Hook)), None),
        PortalLayout::ByAddress => (None, Some(PortalChain::Bucket(Bucket::of(frontend.ip)))),
    };
    both.into_iter().flatten().chain(bucket)
}

impl<'r> ChainContent<'r> {
    /// What one chain shall hold.
    pub(crate) fn of(rules: &'r Ruleset, chain: PortalChain) -> Self {
        let layout = rules.layout();
        let is_here = |frontend: &Frontend| chains_of(layout, frontend).any(|c| c == chain);
        let portals = rules.portals().iter();
        Self {
            chain,
            head: head(rules, chain),
            portals: portals.filter(|(frontend, _)| is_here(frontend)).collect(),
            rules,
        }
    }

    /// All rules, the portals' sorted by frontend.
    pub(crate) fn rules(&self) -> impl Iterator<Item = OwnRule<'r>> {
        let portals = self
            .portals
            .iter()
            .map(|(frontend, rule)| portal_rule(self.rules, frontend, rule));
        self.head.iter().cloned().chain(portals)
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.portals.len()
    }

    /// The rule of a portal, if it stands in this chain.
    pub(crate) fn rule_of(&self, frontend: &Frontend) -> Option<OwnRule<'r>> {
        chains_of(self.rules.layout(), frontend)
            .any(|chain| chain == self.chain)
            .then(|| self.rules.portals().get_key_value(frontend))
            .flatten()
            .map(|(frontend, rule)| portal_rule(self.rules, frontend, rule))
    }
}

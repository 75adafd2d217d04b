//! What has to be changed in the table. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::element::{Element, Key, Leads};
use super::rule::Rule;
use super::serving::{Chain, Parts, among, any_among, slots};
use crate::merged::merged;
use crate::{PortalRule, Ruleset};

/// So many elements fit into one attribute, of at most 64 KiB, whatever their comments.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 200;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    AddSet(String, Duration),
    AddChain(String),
    /// Takes out the rules of a chain.
    EmptyChain(String),
    AddRule(String, Rule),
    Delete(Key),
    Add(Element),
    /// With its rules.
    DeleteChain(String),
    DeleteSet(String),
}

/// Changes in an order in which each finds what it refers to, and takes away what nothing
/// refers to any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    pub(super) fn all(&self) -> &[Change] {
        &self.0
    }

    /// Whether chains or sets come or go, or rules do.
    pub(super) fn of_objects(&self) -> bool {
        let of_elements = |change: &Change| matches!(change, Change::Add(_) | Change::Delete(_));
        !self.0.iter().all(of_elements)
    }

    /// The same in several steps, one after the other, of at most so many changes each.
    pub(super) fn steps(&self, most: usize) -> impl Iterator<Item = &[Change]> {
        self.0.chunks(most)
    }
}

/// What turns what the table holds for one ruleset into what it holds for another; none
/// when their fixed rules differ, so that the table has to be made anew.
pub(super) fn between(known: &Ruleset, wanted: &Ruleset) -> Option<Changes> {
    let same = known.same_fixed_rules(wanted) && known.pods() == wanted.pods();
    same.then(|| changes(known, wanted))
}

/// All that is wanted, into a table that holds nothing yet.
pub(super) fn everything(wanted: &Ruleset) -> Changes {
    changes(&wanted.without_portals(), wanted)
}

/// What turns the one into the other where their fixed rules are the same.
fn changes(known: &Ruleset, wanted: &Ruleset) -> Changes {
    let mut difference = Difference::default();
    let mut addresses = BTreeSet::new();
    let mut differs = false;
    let mut amounts = BTreeSet::new();
    for (frontend, before, after) in known.portals().differing(wanted.portals()) {
        differs = true;
        amounts.extend(
            [(known, before), (wanted, after)]
                .into_iter()
                .filter_map(|(rules, rule)| slots(rules, rule?)),
        );
        let parts = |rules, rule: Option<&PortalRule>| {
            rule.map_or_else(Parts::default, |rule| Parts::of(rules, frontend, rule))
        };
        let has_path = |rule: Option<&PortalRule>| rule.is_some_and(|rule| rule.kernel.is_some());
        if has_path(before) != has_path(after) {
            addresses.insert(frontend.ip);
        }
        difference.of_parts(parts(known, before), parts(wanted, after));
    }
    if !differs {
        return Changes::default();
    }
    difference.of_amounts(known, wanted, &amounts);
    for ip in addresses {
        let key = Key::Address(ip);
        difference.of_member(key, has_path_at(known, ip), has_path_at(wanted, ip));
    }
    let [before, after] = [known, wanted].map(|rules| rules.hairpins().map(|ip| (ip, ())));
    for (ip, before, after) in merged(before, after) {
        difference.of_member(Key::Hairpin(ip), before.is_some(), after.is_some());
    }
    difference.in_order()
}

fn has_path_at(rules: &Ruleset, ip: IpAddr) -> bool {
    let first = Frontend {
        ip,
        protocol: Protocol::Tcp,
        port: 0,
    };
    let portals = rules.portals().starting_at(&first);
    portals
        .take_while(|(frontend, _)| frontend.ip == ip)
        .any(|(_, rule)| rule.kernel.is_some())
}

/// Changes, gathered by kind.
#[derive(Debug, Default)]
struct Difference {
    add_sets: Vec<Change>,
    add_chains: Vec<Change>,
    fill_chains: Vec<Change>,
    delete: Vec<Key>,
    add: Vec<Element>,
    delete_chains: Vec<Change>,
    delete_sets: Vec<Change>,
}

impl Difference {
    fn of_parts(&mut self, before: Parts, after: Parts) {
        for (key, element) in &before.elements {
            if after.elements.get(key) != Some(element) {
                self.delete.push(*key);
            }
        }
        for (key, element) in after.elements {
            if before.elements.get(&key) != Some(&element) {
                self.add.push(element);
            }
        }
        for (name, silence) in &after.sets {
            if !before.sets.contains_key(name) {
                self.add_sets.push(Change::AddSet(name.clone(), *silence));
            }
        }
        for name in before.sets.into_keys() {
            if !after.sets.contains_key(&name) {
                self.delete_sets.push(Change::DeleteSet(name));
            }
        }
        self.of_chains(before.chains, after.chains);
    }

    fn of_chains(&mut self, before: BTreeMap<String, Chain>, mut after: BTreeMap<String, Chain>) {
        for (name, chain) in before {
            match after.remove(&name) {
                None => self.delete_chains.push(Change::DeleteChain(name)),
                Some(same) if same == chain => {}
                Some(other) => {
                    self.fill_chains.push(Change::EmptyChain(name));
                    self.fill(other);
                }
            }
        }
        for (name, chain) in after {
            self.add_chains.push(Change::AddChain(name));
            self.fill(chain);
        }
    }

    fn fill(&mut self, Chain { name, rules }: Chain) {
        let rules = rules.into_iter();
        self.fill_chains
            .extend(rules.map(|rule| Change::AddRule(name.clone(), rule)));
    }

    /// Portals that changed choose, or chose, among so many.
    fn of_amounts(&mut self, known: &Ruleset, wanted: &Ruleset, amounts: &BTreeSet<u32>) {
        let chains = |rules| {
            let chosen = amounts.iter().filter(|slots| any_among(rules, **slots));
            let chains = chosen.map(|slots| among(wanted.family(), *slots));
            chains.map(|chain| (chain.name.clone(), chain)).collect()
        };
        self.of_chains(chains(known), chains(wanted));
    }

    fn of_member(&mut self, key: Key, before: bool, after: bool) {
        match (before, after) {
            (true, false) => self.delete.push(key),
            (false, true) => self.add.push(Element {
                key,
                leads: Leads::Nowhere,
                comment: None,
            }),
            (true, true) | (false, false) => {}
        }
    }

    /// By map or set, so that many elements fit into one message; what leads somewhere goes
    /// first and comes last.
    fn in_order(mut self) -> Changes {
        self.delete.sort_by(|one, other| other.cmp(one));
        self.add.sort_by_key(|element| element.key);
        let mut all = self.add_sets;
        all.append(&mut self.add_chains);
        all.append(&mut self.fill_chains);
        all.extend(self.delete.into_iter().map(Change::Delete));
        all.extend(self.add.into_iter().map(Change::Add));
        all.append(&mut self.delete_chains);
        all.append(&mut self.delete_sets);
        Changes(all)
    }
}

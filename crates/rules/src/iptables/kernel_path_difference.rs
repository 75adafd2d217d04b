//! What has to be changed about the chains that serve portals in the kernel. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use edgemesh_plan::Frontend;

use crate::chain_names::{MASQUERADE, POSTROUTING};
use crate::iptables::changes::{ChangedPortal, Difference, Removal, referring_to};
use crate::iptables::masquerade::{BEFORE_HAIRPINS, hairpin, masquerade_rules};
use crate::iptables::options::same_rule;
use crate::iptables::parse::Table;
use crate::iptables::service_chain::{EndpointRule, chain_name, endpoint_rules};
use crate::iptables::transaction::Transaction;
use crate::precedence::{correction, own_jumps};
use crate::{PortalRule, Repair, Ruleset};

/// Adds the changes that turn what was read back into what is wanted.
pub(crate) fn kernel_path_against(
    difference: &mut Difference,
    table: &Table<'_>,
    wanted: &Ruleset,
) {
    service_chains_against(difference, table, wanted);
    if wanted.extensions().kernel_path {
        masquerade_against(difference, table, wanted);
    } else if table.masquerade.is_some() {
        let mut removal = Removal::default();
        remove_masquerade(&mut removal, table);
        difference.transaction.append_all(&removal.transaction);
        difference.repairs.push(Repair::MasqueradeChain);
    }
}

/// Adds the changes from one ruleset to another, where the kernel is known to hold the
/// first.
pub(crate) fn kernel_path_between(
    transaction: &mut Transaction,
    known: &Ruleset,
    wanted: &Ruleset,
    changed: &[ChangedPortal<'_>],
) {
    for change in changed {
        let old = change.old.and_then(|r| chain(known, change.frontend, r));
        let new = change.new.and_then(|r| chain(wanted, change.frontend, r));
        if let Some((name, rules)) = &new
            && old != new
        {
            transaction.make_whole(name, rules);
        }
        if let Some((name, _)) = old
            && new.is_none_or(|(new, _)| new != name)
        {
            transaction.delete_chain(&name);
        }
    }
    masquerade_between(transaction, known, wanted);
}

/// Takes out all of them.
pub(crate) fn remove_kernel_path(removal: &mut Removal, table: &Table<'_>) {
    remove_masquerade(removal, table);
    for (name, rules) in &table.services {
        removal.remove_chain(table, name, rules.is_empty());
    }
}

fn remove_masquerade(removal: &mut Removal, table: &Table<'_>) {
    for spec in own_jumps(&table.postrouting) {
        removal.transaction.delete_jump(POSTROUTING, spec);
    }
    if let Some(rules) = &table.masquerade {
        removal.remove_chain(table, MASQUERADE, rules.is_empty());
    }
}

type Chain = (String, Vec<EndpointRule>);

/// The chain of a portal, if it takes one.
fn chain(rules: &Ruleset, frontend: &Frontend, rule: &PortalRule) -> Option<Chain> {
    let endpoints = endpoint_rules(rules, frontend, rule);
    (!endpoints.is_empty()).then(|| (chain_name(frontend, rule.comment.as_str()), endpoints))
}

fn service_chains_against(difference: &mut Difference, table: &Table<'_>, wanted: &Ruleset) {
    let chains: BTreeMap<String, Vec<EndpointRule>> = wanted
        .portals()
        .iter()
        .filter_map(|(frontend, rule)| chain(wanted, frontend, rule))
        .collect();
    let mut altered = Vec::new();
    for (name, rules) in &chains {
        let found = table.services.get(name.as_str());
        if !found.is_some_and(|found| holds(found, rules)) {
            difference.transaction.make_whole(name, rules);
            altered.push(name.as_str());
        }
    }
    for (name, rules) in &table.services {
        if chains.contains_key(*name) {
            continue;
        }
        if referring_to(table, name).next().is_none() {
            difference.transaction.delete_chain(name);
            altered.push(name);
        } else if !rules.is_empty() {
            difference.transaction.empty(name);
            altered.push(name);
        }
    }
    if let Some(first) = altered.first() {
        difference.repairs.push(Repair::ServiceChains {
            first: (*first).to_owned(),
            count: altered.len(),
        });
    }
}

fn holds(found: &[&str], rules: &[EndpointRule]) -> bool {
    found.len() == rules.len()
        && found
            .iter()
            .zip(rules)
            .all(|(found, rule)| same_rule(found, &rule.to_string()))
}

fn masquerade_against(difference: &mut Difference, table: &Table<'_>, wanted: &Ruleset) {
    let found = table.masquerade.as_deref();
    if !found.is_some_and(|found| masquerades_as_wanted(found, wanted)) {
        difference.transaction.rewrite_masquerade(wanted);
        difference.repairs.push(Repair::MasqueradeChain);
    }
    if let Some(correction) = correction(&table.postrouting) {
        for spec in correction.delete {
            difference.transaction.delete_jump(POSTROUTING, spec);
        }
        difference.transaction.insert_masquerade_jump();
        difference
            .repairs
            .push(Repair::MasqueradeJump(correction.because));
    }
}

/// The order of the rules about hairpins is of no matter.
fn masquerades_as_wanted(found: &[&str], wanted: &Ruleset) -> bool {
    let rules: Vec<String> = masquerade_rules(wanted)
        .iter()
        .map(ToString::to_string)
        .collect();
    let hairpins = BEFORE_HAIRPINS..BEFORE_HAIRPINS + wanted.hairpins().count();
    if found.len() != rules.len() {
        return false;
    }
    let (mut found_hairpins, mut wanted_hairpins) = (Vec::new(), Vec::new());
    for (place, (found, wanted)) in found.iter().zip(&rules).enumerate() {
        if hairpins.contains(&place) {
            found_hairpins.push(*found);
            wanted_hairpins.push(wanted.as_str());
        } else if !same_rule(found, wanted) {
            return false;
        }
    }
    found_hairpins.sort_unstable();
    wanted_hairpins.sort_unstable();
    found_hairpins
        .iter()
        .zip(wanted_hairpins)
        .all(|(found, wanted)| same_rule(found, wanted))
}

fn masquerade_between(transaction: &mut Transaction, known: &Ruleset, wanted: &Ruleset) {
    let (had, has) = (known.extensions(), wanted.extensions());
    match (had.kernel_path, has.kernel_path) {
        (false, false) => {}
        (false, true) => {
            transaction.rewrite_masquerade(wanted);
            transaction.insert_masquerade_jump();
        }
        (true, false) => {
            transaction.delete_masquerade_jump();
            transaction.delete_chain(MASQUERADE);
        }
        (true, true) if known.pods() != wanted.pods() || had.random_fully != has.random_fully => {
            transaction.rewrite_masquerade(wanted);
        }
        (true, true) => hairpins_between(transaction, known, wanted),
    }
}

fn hairpins_between(transaction: &mut Transaction, known: &Ruleset, wanted: &Ruleset) {
    let not_in = |one: &Ruleset, other: &Ruleset| -> Vec<IpAddr> {
        one.hairpins()
            .filter(|pod| !other.is_hairpin(*pod))
            .collect()
    };
    for pod in not_in(known, wanted) {
        transaction.delete(MASQUERADE, &hairpin(known, pod));
    }
    for pod in not_in(wanted, known) {
        transaction.insert(MASQUERADE, BEFORE_HAIRPINS + 1, &hairpin(wanted, pod));
    }
}

//! What has to be changed so that the kernel holds what is wanted. Pure.

use std::collections::{BTreeMap, BTreeSet};

use edgemesh_plan::Frontend;

use crate::chain_names::OwnChain;
use crate::iptables::chain_content::{ChainContent, chains_of, portal_chains};
use crate::iptables::changes::{ChangedPortal, Difference, Removal, referring_to};
use crate::iptables::kernel_path_difference::{
    kernel_path_against, kernel_path_between, remove_kernel_path,
};
use crate::iptables::own_rule::{OwnRule, layout_rules, portal_rule};
use crate::iptables::parse::{FoundRule, Table};
use crate::iptables::transaction::Transaction;
use crate::merged::merged;
use crate::precedence::{correction, own_jumps};
use crate::{PortalChain, PortalLayout, PortalRule, Repair, Ruleset};

/// From this many deletions on a chain is made anew: each deletion by text makes
/// iptables search the chain, so that many cost more than a full rewrite.
const MOST_DELETIONS: usize = 256;

/// How chains that differ are set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// With as few lines as possible.
    SmallestChange,
    /// By making them anew: for what can't be deleted by its own text.
    Rewrite,
}

/// The changes that turn what was read back into what is wanted.
pub(crate) fn against(table: &Table<'_>, wanted: &Ruleset, means: Means) -> Difference {
    let mut difference = Difference::default();
    kernel_path_against(&mut difference, table, wanted);
    for content in portal_chains(wanted) {
        let found = table.portal_chain(content.chain);
        chain_difference(&mut difference, found, &content, means);
    }
    surplus_buckets(&mut difference, table, wanted);
    for chain in OwnChain::BOTH {
        if let Some(correction) = correction(table.hook(chain)) {
            for spec in correction.delete {
                difference.transaction.delete_jump(chain.hook(), spec);
            }
            difference
                .transaction
                .insert_jump(chain, correction.insert_at);
            difference.repairs.push(Repair::Jump {
                chain,
                because: correction.because,
            });
        }
    }
    difference
}

/// The changes from one ruleset to another, where the kernel is known to hold the first.
pub(crate) fn between(known: &Ruleset, wanted: &Ruleset) -> Transaction {
    let mut transaction = Transaction::default();
    let same_fixed_rules = known.same_fixed_rules(wanted)
        && known.extensions() == wanted.extensions()
        && known.pods() == wanted.pods();
    let changed = changed_portals(known, wanted, same_fixed_rules);
    kernel_path_between(&mut transaction, known, wanted, &changed);
    match (known.layout(), wanted.layout()) {
        (PortalLayout::ByAddress, PortalLayout::InBoth) if same_fixed_rules => {
            move_to_both(&mut transaction, wanted);
        }
        (old, new) if old == new => {
            chains_between(&mut transaction, known, wanted, &changed, same_fixed_rules);
        }
        (PortalLayout::InBoth | PortalLayout::ByAddress, _) => {
            for content in portal_chains(wanted) {
                transaction.rewrite(&content);
            }
        }
    }
    let kept: BTreeSet<_> = wanted.layout().buckets().collect();
    for gone in known
        .layout()
        .buckets()
        .filter(|bucket| !kept.contains(bucket))
    {
        transaction.delete_chain(&gone.to_string());
    }
    transaction
}

/// Has both hooks' chains hold all portals, of which they hold none. The rules come before those
/// that lead elsewhere go, so that no packet misses them even where this takes several steps.
fn move_to_both(transaction: &mut Transaction, wanted: &Ruleset) {
    for content in portal_chains(wanted) {
        for (frontend, rule) in &content.portals {
            transaction.append(content.chain, &portal_rule(wanted, frontend, rule));
        }
    }
    let of_old_layout: Vec<_> = layout_rules(wanted, PortalLayout::ByAddress).collect();
    for chain in OwnChain::BOTH {
        // The last one first: it would take what the others lead to no more.
        for rule in of_old_layout.iter().rev() {
            transaction.delete(chain.name(), rule);
        }
    }
}

/// Adds the changes of chains that are the same before and after, but for what they hold.
fn chains_between(
    transaction: &mut Transaction,
    known: &Ruleset,
    wanted: &Ruleset,
    changed: &[ChangedPortal<'_>],
    same_fixed_rules: bool,
) {
    let mut changes: BTreeMap<PortalChain, RuleChanges<'_>> = BTreeMap::new();
    if !same_fixed_rules {
        changes.extend(OwnChain::BOTH.map(|chain| (chain.into(), RuleChanges::default())));
    }
    for change in changed {
        let (old, new) = change.rules(known, wanted);
        if old == new {
            continue;
        }
        for chain in chains_of(wanted.layout(), change.frontend) {
            let changes = changes.entry(chain).or_default();
            changes.gone.extend(old.clone());
            changes.new.extend(new.clone());
        }
    }
    for (chain, changes) in &changes {
        let heads_differ = match chain {
            PortalChain::Hook(_) => !same_fixed_rules,
            PortalChain::Bucket(_) => false,
        };
        // Nothing of a chain has to be looked at for what only comes.
        if heads_differ || !changes.gone.is_empty() {
            let content = ChainContent::of(wanted, *chain);
            if heads_differ || too_much(changes.gone.len(), changes.new.len(), content.len()) {
                transaction.rewrite(&content);
                continue;
            }
        }
        for gone in &changes.gone {
            transaction.delete(&chain.to_string(), gone);
        }
        for new in &changes.new {
            transaction.append(*chain, new);
        }
    }
}

/// The rules that a chain loses and gets.
#[derive(Debug, Default)]
struct RuleChanges<'a> {
    gone: Vec<OwnRule<'a>>,
    new: Vec<OwnRule<'a>>,
}

/// The portals that are not the same, or all, when the same portal may be another rule.
fn changed_portals<'a>(
    known: &'a Ruleset,
    wanted: &'a Ruleset,
    same_fixed_rules: bool,
) -> Vec<ChangedPortal<'a>> {
    let changed = |(frontend, old, new)| ChangedPortal { frontend, old, new };
    if same_fixed_rules {
        let differing = known.portals().differing(wanted.portals());
        return differing.map(changed).collect();
    }
    merged(known.portals().iter(), wanted.portals().iter())
        .map(changed)
        .collect()
}

/// What has to be done so that nothing of ours is left.
pub(crate) fn removal(table: &Table<'_>) -> Removal {
    let mut removal = Removal::default();
    for chain in OwnChain::BOTH {
        for spec in own_jumps(table.hook(chain)) {
            removal.transaction.delete_jump(chain.hook(), spec);
        }
    }
    for chain in OwnChain::BOTH {
        if let Some(rules) = table.own(chain) {
            removal.remove_chain(table, chain.name(), rules.is_empty());
        }
    }
    for (bucket, rules) in &table.buckets {
        removal.remove_chain(table, &bucket.to_string(), rules.is_empty());
    }
    remove_kernel_path(&mut removal, table);
    removal
}

/// Deletes the chains of portals that no rule of ours leads to.
fn surplus_buckets(difference: &mut Difference, table: &Table<'_>, wanted: &Ruleset) {
    let kept: BTreeSet<_> = wanted.layout().buckets().collect();
    let mut surplus = Vec::new();
    for (&bucket, rules) in table.buckets.iter().filter(|(b, _)| !kept.contains(b)) {
        let name = bucket.to_string();
        if referring_to(table, &name).next().is_none() {
            difference.transaction.delete_chain(&name);
        } else if rules.is_empty() {
            continue;
        } else {
            difference.transaction.empty(&name);
        }
        surplus.push(bucket);
    }
    if let Some(&first) = surplus.first() {
        difference.repairs.push(Repair::ChainsSurplus {
            first: PortalChain::Bucket(first),
            count: surplus.len(),
        });
    }
}

fn chain_difference(
    difference: &mut Difference,
    found: Option<&[FoundRule<'_>]>,
    wanted: &ChainContent<'_>,
    means: Means,
) {
    let Some(found) = found else {
        difference.transaction.rewrite(wanted);
        difference.repairs.push(Repair::ChainMissing(wanted.chain));
        return;
    };
    let Some((surplus, kept)) = surplus_and_kept(found, wanted) else {
        rewrite_found(difference, wanted);
        return;
    };
    let missing: Vec<_> = wanted
        .portals
        .iter()
        .filter(|(frontend, _)| !kept.contains(*frontend))
        .copied()
        .collect();
    if surplus.is_empty() && missing.is_empty() {
        return;
    }
    if means == Means::Rewrite || too_much(surplus.len(), missing.len(), wanted.len()) {
        rewrite_found(difference, wanted);
        return;
    }
    change_rules(difference, wanted, &surplus, &missing);
}

fn change_rules(
    difference: &mut Difference,
    wanted: &ChainContent<'_>,
    surplus: &[&str],
    missing: &[(&Frontend, &PortalRule)],
) {
    let chain = wanted.chain;
    for spec in surplus {
        difference.transaction.delete(&chain.to_string(), spec);
    }
    for rule in missing.iter().filter_map(|(f, _)| wanted.rule_of(f)) {
        difference.transaction.append(chain, &rule);
    }
    if let Some(first) = surplus.first() {
        difference.repairs.push(Repair::RulesSurplus {
            chain,
            first: (*first).to_owned(),
            count: surplus.len(),
        });
    }
    if let Some((first, _)) = missing.first() {
        difference.repairs.push(Repair::RulesMissing {
            chain,
            first: **first,
            count: missing.len(),
        });
    }
}

/// The texts of rules that don't belong here, and the portals whose rule is right; none
/// when the chain doesn't begin with its head, or a rule of that is there again
/// (deleting that by its text would take the first).
fn surplus_and_kept<'a>(
    found: &[FoundRule<'a>],
    wanted: &ChainContent<'_>,
) -> Option<(Vec<&'a str>, BTreeSet<Frontend>)> {
    let (first, rest) = found.split_at_checked(wanted.head.len())?;
    if !first
        .iter()
        .map(|found| found.rule.as_ref())
        .eq(wanted.head.iter().map(Some))
    {
        return None;
    }
    let mut surplus = Vec::new();
    let mut kept = BTreeSet::new();
    for found in rest {
        match &found.rule {
            Some(rule) if wanted.head.contains(rule) => {
                return None;
            }
            Some(rule @ OwnRule::Portal { frontend, .. })
                if wanted.rule_of(frontend).as_ref() == Some(rule) && kept.insert(*frontend) => {}
            Some(_) | None => surplus.push(found.spec),
        }
    }
    Some((surplus, kept))
}

fn too_much(deleted: usize, added: usize, all: usize) -> bool {
    deleted > 0 && (deleted > MOST_DELETIONS || deleted + added > all)
}

fn rewrite_found(difference: &mut Difference, wanted: &ChainContent<'_>) {
    difference.transaction.rewrite(wanted);
    difference
        .repairs
        .push(Repair::ChainRewritten(wanted.chain));
}

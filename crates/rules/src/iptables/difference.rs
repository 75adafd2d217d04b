//! What has to be changed so that the kernel holds what is wanted. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use edgemesh_plan::Frontend;

use crate::chain_names::OwnChain;
use crate::iptables::own_rule::{OwnRule, fixed_rules};
use crate::iptables::parse::{FoundRule, Table};
use crate::iptables::transaction::Transaction;
use crate::precedence::{correction, own_jumps};
use crate::{PortalRule, Repair, Ruleset};

/// From this many deletions on a chain is made anew: each deletion by text makes
/// iptables search the chain, so that many cost more than a full rewrite.
const MOST_DELETIONS: usize = 256;

/// The changes, and for each what was otherwise than it should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) transaction: Transaction,
    pub(crate) repairs: Vec<Repair>,
}

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
    for chain in OwnChain::BOTH {
        chain_difference(&mut difference, chain, table.own(chain), wanted, means);
    }
    for chain in OwnChain::BOTH {
        if let Some(correction) = correction(table.hook(chain)) {
            for spec in correction.delete {
                difference.transaction.delete_from_hook(chain, spec);
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
    if !known.same_fixed_rules(wanted) {
        rewrite_both(&mut transaction, wanted);
        return transaction;
    }
    let gone = unlike(known, wanted);
    let new = unlike(wanted, known);
    if too_much(gone.len(), new.len(), wanted) {
        rewrite_both(&mut transaction, wanted);
        return transaction;
    }
    for chain in OwnChain::BOTH {
        for &(frontend, rule) in &gone {
            transaction.delete(chain, &portal(known, frontend, rule));
        }
        for &(frontend, rule) in &new {
            transaction.append(chain, &portal(wanted, frontend, rule));
        }
    }
    transaction
}

/// The changes that take out all that is ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) transaction: Transaction,
    /// Rules of others that lead into a chain of ours: these chains can only be emptied.
    pub(crate) kept_by: Vec<String>,
}

/// What has to be done so that nothing of ours is left.
pub(crate) fn removal(table: &Table<'_>) -> Removal {
    let mut removal = Removal::default();
    for chain in OwnChain::BOTH {
        for spec in own_jumps(table.hook(chain)) {
            removal.transaction.delete_from_hook(chain, spec);
        }
    }
    for chain in OwnChain::BOTH {
        let Some(rules) = table.own(chain) else {
            continue;
        };
        let mut referring = referring_to(table, chain).peekable();
        if referring.peek().is_none() {
            removal.transaction.make_empty(chain);
            removal.transaction.delete_chain(chain);
        } else {
            removal.kept_by.extend(referring.map(str::to_owned));
            if !rules.is_empty() {
                removal.transaction.make_empty(chain);
            }
        }
    }
    removal
}

fn referring_to<'t, 'a>(
    table: &'t Table<'a>,
    chain: OwnChain,
) -> impl Iterator<Item = &'a str> + use<'t, 'a> {
    table
        .references
        .iter()
        .copied()
        .filter(move |rule| rule.contains(chain.name()))
}

fn chain_difference(
    difference: &mut Difference,
    chain: OwnChain,
    found: Option<&[FoundRule<'_>]>,
    wanted: &Ruleset,
    means: Means,
) {
    let Some(found) = found else {
        difference.transaction.rewrite(chain, wanted);
        difference.repairs.push(Repair::ChainMissing(chain));
        return;
    };
    let Some((surplus, kept)) = surplus_and_kept(found, wanted) else {
        rewrite_found(difference, chain, wanted);
        return;
    };
    let missing: Vec<_> = wanted
        .portals()
        .iter()
        .filter(|(frontend, _)| !kept.contains(*frontend))
        .collect();
    if surplus.is_empty() && missing.is_empty() {
        return;
    }
    if means == Means::Rewrite || too_much(surplus.len(), missing.len(), wanted) {
        rewrite_found(difference, chain, wanted);
        return;
    }
    change_rules(difference, chain, wanted, &surplus, &missing);
}

fn change_rules(
    difference: &mut Difference,
    chain: OwnChain,
    wanted: &Ruleset,
    surplus: &[&str],
    missing: &[(&Frontend, &PortalRule)],
) {
    for spec in surplus {
        difference.transaction.delete(chain, spec);
    }
    for &(frontend, rule) in missing {
        difference
            .transaction
            .append(chain, &portal(wanted, frontend, rule));
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
/// when the chain doesn't begin with the fixed rules, or one of them is there again
/// (deleting that by its text would take the first).
fn surplus_and_kept<'a>(
    found: &[FoundRule<'a>],
    wanted: &Ruleset,
) -> Option<(Vec<&'a str>, BTreeSet<Frontend>)> {
    let fixed = fixed_rules(wanted);
    let (first, rest) = found.split_at_checked(fixed.len())?;
    if !first
        .iter()
        .map(|found| found.rule.as_ref())
        .eq(fixed.iter().map(Some))
    {
        return None;
    }
    let mut surplus = Vec::new();
    let mut kept = BTreeSet::new();
    for found in rest {
        match &found.rule {
            Some(rule) if fixed.contains(rule) => {
                return None;
            }
            Some(OwnRule::Portal {
                frontend,
                to,
                comment,
            }) if is_wanted(wanted, frontend, *to, comment) && kept.insert(*frontend) => {}
            Some(_) | None => surplus.push(found.spec),
        }
    }
    Some((surplus, kept))
}

fn is_wanted(wanted: &Ruleset, frontend: &Frontend, to: SocketAddr, comment: &str) -> bool {
    wanted
        .portals()
        .get(frontend)
        .is_some_and(|rule| wanted.destination(rule) == to && rule.comment.as_str() == comment)
}

/// The portals of `one` that `other` doesn't have, or has differently.
fn unlike<'a>(one: &'a Ruleset, other: &Ruleset) -> Vec<(&'a Frontend, &'a PortalRule)> {
    one.portals()
        .iter()
        .filter(|(frontend, rule)| other.portals().get(*frontend) != Some(*rule))
        .collect()
}

fn too_much(deleted: usize, added: usize, wanted: &Ruleset) -> bool {
    deleted > 0
        && (deleted > MOST_DELETIONS
            || deleted + added > wanted.portals().len() + fixed_rules(wanted).len())
}

fn rewrite_found(difference: &mut Difference, chain: OwnChain, wanted: &Ruleset) {
    difference.transaction.rewrite(chain, wanted);
    difference.repairs.push(Repair::ChainRewritten(chain));
}

fn rewrite_both(transaction: &mut Transaction, wanted: &Ruleset) {
    for chain in OwnChain::BOTH {
        transaction.rewrite(chain, wanted);
    }
}

fn portal<'a>(rules: &Ruleset, frontend: &Frontend, rule: &'a PortalRule) -> OwnRule<'a> {
    OwnRule::Portal {
        frontend: *frontend,
        to: rules.destination(rule),
        comment: Cow::Borrowed(rule.comment.as_str()),
    }
}

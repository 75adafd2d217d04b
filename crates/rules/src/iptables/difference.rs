//! What has to be changed so that the kernel holds what is wanted. Pure.

use std::collections::BTreeSet;

use edgemesh_plan::Frontend;

use crate::chain_names::OwnChain;
use crate::iptables::kernel_path_difference::{
    kernel_path_against, kernel_path_between, remove_kernel_path,
};
use crate::iptables::own_rule::{OwnRule, fixed_rules, portal_rule};
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
    kernel_path_against(&mut difference, table, wanted);
    for chain in OwnChain::BOTH {
        chain_difference(&mut difference, chain, table.own(chain), wanted, means);
    }
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
    let rules: Vec<_> = changed
        .iter()
        .map(|change| change.rules(known, wanted))
        .filter(|(old, new)| old != new)
        .collect();
    let gone = rules.iter().filter(|(old, _)| old.is_some()).count();
    let new = rules.iter().filter(|(_, new)| new.is_some()).count();
    if !same_fixed_rules || too_much(gone, new, wanted) {
        for chain in OwnChain::BOTH {
            transaction.rewrite(chain, wanted);
        }
        return transaction;
    }
    for chain in OwnChain::BOTH {
        for old in rules.iter().filter_map(|(old, _)| old.as_ref()) {
            transaction.delete(chain.name(), old);
        }
        for new in rules.iter().filter_map(|(_, new)| new.as_ref()) {
            transaction.append(chain, new);
        }
    }
    transaction
}

/// A portal that is not the same before and after.
pub(crate) struct ChangedPortal<'a> {
    pub(crate) frontend: &'a Frontend,
    pub(crate) old: Option<&'a PortalRule>,
    pub(crate) new: Option<&'a PortalRule>,
}

impl<'a> ChangedPortal<'a> {
    /// The rule before and after.
    fn rules(
        &self,
        known: &Ruleset,
        wanted: &Ruleset,
    ) -> (Option<OwnRule<'a>>, Option<OwnRule<'a>>) {
        (
            self.old.map(|rule| portal_rule(known, self.frontend, rule)),
            self.new
                .map(|rule| portal_rule(wanted, self.frontend, rule)),
        )
    }
}

/// The portals that are not the same, or all, when the same portal may be another rule.
fn changed_portals<'a>(
    known: &'a Ruleset,
    wanted: &'a Ruleset,
    same_fixed_rules: bool,
) -> Vec<ChangedPortal<'a>> {
    let old = known.portals().iter().map(|(frontend, old)| ChangedPortal {
        frontend,
        old: Some(old),
        new: wanted.portals().get(frontend),
    });
    let added = wanted
        .portals()
        .iter()
        .filter(|(frontend, _)| !known.portals().contains_key(*frontend))
        .map(|(frontend, new)| ChangedPortal {
            frontend,
            old: None,
            new: Some(new),
        });
    old.filter(|change| !same_fixed_rules || change.old != change.new)
        .chain(added)
        .collect()
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
            removal.transaction.delete_jump(chain.hook(), spec);
        }
    }
    for chain in OwnChain::BOTH {
        if let Some(rules) = table.own(chain) {
            removal.remove_chain(table, chain.name(), rules.is_empty());
        }
    }
    remove_kernel_path(&mut removal, table);
    removal
}

impl Removal {
    /// Deletes a chain, or only empties it where somebody else's rule leads into it.
    pub(crate) fn remove_chain(&mut self, table: &Table<'_>, chain: &str, is_empty: bool) {
        let before = self.kept_by.len();
        self.kept_by
            .extend(referring_to(table, chain).map(str::to_owned));
        if self.kept_by.len() == before {
            self.transaction.delete_chain(chain);
        } else if !is_empty {
            self.transaction.empty(chain);
        }
    }
}

/// Rules of others that lead into a chain of ours.
pub(crate) fn referring_to<'t, 'a>(
    table: &'t Table<'a>,
    chain: &str,
) -> impl Iterator<Item = &'a str> + use<'t, 'a> {
    let jumps = ["-j ", "-g "].map(|option| format!("{option}{chain}"));
    table.references.iter().copied().filter(move |rule| {
        jumps.iter().any(|jump| {
            rule.find(jump.as_str())
                .and_then(|at| rule.get(at + jump.len()..))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        })
    })
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
    let Some((surplus, kept)) = surplus_and_kept(found, chain, wanted) else {
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
        difference.transaction.delete(chain.name(), spec);
    }
    for &(frontend, rule) in missing {
        difference
            .transaction
            .append(chain, &portal_rule(wanted, frontend, rule));
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
    chain: OwnChain,
    wanted: &Ruleset,
) -> Option<(Vec<&'a str>, BTreeSet<Frontend>)> {
    let fixed = fixed_rules(wanted, chain);
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
            Some(rule @ OwnRule::Portal { frontend, .. })
                if is_wanted(wanted, frontend, rule) && kept.insert(*frontend) => {}
            Some(_) | None => surplus.push(found.spec),
        }
    }
    Some((surplus, kept))
}

fn is_wanted(wanted: &Ruleset, frontend: &Frontend, found: &OwnRule<'_>) -> bool {
    wanted
        .portals()
        .get(frontend)
        .is_some_and(|rule| portal_rule(wanted, frontend, rule) == *found)
}

fn too_much(deleted: usize, added: usize, wanted: &Ruleset) -> bool {
    deleted > 0
        && (deleted > MOST_DELETIONS
            || deleted + added
                > wanted.portals().len() + fixed_rules(wanted, OwnChain::Container).len())
}

fn rewrite_found(difference: &mut Difference, chain: OwnChain, wanted: &Ruleset) {
    difference.transaction.rewrite(chain, wanted);
    difference.repairs.push(Repair::ChainRewritten(chain));
}

//! What a comparison of two states of the nat table comes to.

use edgemesh_plan::Frontend;

use crate::iptables::own_rule::{OwnRule, portal_rule};
use crate::iptables::parse::Table;
use crate::iptables::transaction::Transaction;
use crate::{PortalRule, Repair, Ruleset};

/// The changes, and for each what was otherwise than it should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) transaction: Transaction,
    pub(crate) repairs: Vec<Repair>,
}

/// A portal that is not the same before and after.
pub(crate) struct ChangedPortal<'a> {
    pub(crate) frontend: &'a Frontend,
    pub(crate) old: Option<&'a PortalRule>,
    pub(crate) new: Option<&'a PortalRule>,
}

impl<'a> ChangedPortal<'a> {
    /// The rule before and after.
    pub(crate) fn rules(
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

/// The changes that take out all that is ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) transaction: Transaction,
    /// Rules of others that lead into a chain of ours: these chains can only be emptied.
    pub(crate) kept_by: Vec<String>,
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

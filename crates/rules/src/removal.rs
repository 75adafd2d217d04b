//! Taking out of the nat table what is ours, and nothing else.

use crate::error::RulesError;
use crate::iptables::difference::removal;
use crate::iptables::installed::Tools;
use crate::iptables::parse::Table;
use crate::iptables::transaction::RULES_PER_STEP;

/// What was taken out of one family's nat table in one flavour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rules in our chains.
    pub rules: usize,
    /// Jumps to our chains.
    pub jumps: usize,
    /// Foreign rules, as `CHAIN RULE`, that lead into a chain of ours. They are not ours to
    /// delete, and while they stand, the chain can be emptied but not deleted.
    pub kept_by: Vec<String>,
}

impl Removed {
    /// Whether there was nothing of ours.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// How often a removal is tried when rules change meanwhile.
const ATTEMPTS: usize = 3;

/// Removes all that is ours. With nothing of ours there nothing is changed.
pub(crate) async fn remove_all(tools: &Tools) -> Result<Removed, RulesError> {
    let mut removed = Removed::default();
    let mut last_error = None;
    for _ in 0..ATTEMPTS {
        if !tools.may_have_table("nat") {
            return Ok(removed);
        }
        let text = tools.save("nat").await?;
        let table = Table::parse(&text);
        let removal = removal(&table);
        removed.kept_by = removal.kept_by;
        if removal.transaction.is_empty() {
            return Ok(removed);
        }
        let whole = match tools.restore(&removal.transaction.text()).await {
            // One message that is too long is refused whole: nothing has changed yet.
            Err(error) if error.is_too_long() => {
                let (steps, _) = removal.transaction.sections(RULES_PER_STEP);
                tools.restore(&steps).await
            }
            outcome => outcome,
        };
        match whole {
            Ok(()) => {
                removed.rules += table.own_rules();
                removed.jumps += table.own_jumps();
                last_error = None;
            }
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.map_or(
        RulesError::NotRemoved {
            family: tools.family,
            flavour: tools.flavour,
        },
        RulesError::Tool,
    ))
}

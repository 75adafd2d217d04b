//! What has to be changed in the map of portals. Pure.

use edgemesh_plan::Frontend;

use super::element::PortalElement;
use crate::Ruleset;

/// So many elements fit into one attribute, of at most 64 KiB, whatever their comments.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 200;

/// Portals to take out, and portals to put in after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) delete: Vec<Frontend>,
    pub(super) add: Vec<PortalElement>,
}

impl Changes {
    /// The same in several steps, one after the other, of at most so many elements each.
    pub(super) fn steps(&self, most: usize) -> impl Iterator<Item = Changes> + use<'_> {
        let delete = self.delete.chunks(most).map(|some| Changes {
            delete: some.to_vec(),
            add: Vec::new(),
        });
        let add = self.add.chunks(most).map(|some| Changes {
            delete: Vec::new(),
            add: some.to_vec(),
        });
        delete.chain(add)
    }
}

/// What turns one ruleset's portals into another's; none when their fixed rules differ, so
/// that the table has to be made anew.
pub(super) fn between(known: &Ruleset, wanted: &Ruleset) -> Option<Changes> {
    if !known.same_fixed_rules(wanted) {
        return None;
    }
    let unlike = |one: &Ruleset, other: &Ruleset| -> Vec<Frontend> {
        one.portals()
            .iter()
            .filter(|(frontend, rule)| other.portals().get(*frontend) != Some(*rule))
            .map(|(frontend, _)| *frontend)
            .collect()
    };
    Some(Changes {
        delete: unlike(known, wanted),
        add: all_of(wanted)
            .filter(|(frontend, rule)| known.portals().get(*frontend) != Some(*rule))
            .map(|(frontend, rule)| PortalElement::of(wanted, frontend, rule))
            .collect(),
    })
}

/// All portals, into an empty map.
pub(super) fn everything(wanted: &Ruleset) -> Changes {
    Changes {
        delete: Vec::new(),
        add: all_of(wanted)
            .map(|(frontend, rule)| PortalElement::of(wanted, frontend, rule))
            .collect(),
    }
}

fn all_of(rules: &Ruleset) -> impl Iterator<Item = (&Frontend, &crate::PortalRule)> {
    rules.portals().iter()
}

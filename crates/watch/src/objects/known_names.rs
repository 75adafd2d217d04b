//! Names that occur in many objects, kept once.

use std::collections::BTreeSet;
use std::sync::Arc;

/// The names seen so far.
///
/// Namespaces, node names and port names repeat in thousands of objects; sharing
/// their text saves megabytes on a small node.
#[derive(Debug, Default)]
pub(crate) struct KnownNames {
    names: BTreeSet<Arc<str>>,
    /// Labels of Nodes that are kept; all others are dropped at the door.
    node_labels: Arc<[Arc<str>]>,
    /// How many there were after the last clearing out.
    kept: usize,
}

impl KnownNames {
    const FEWEST_TO_CLEAR: usize = 1024;

    /// The shared copy of `name`.
    pub(crate) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= 2 * self.kept.max(Self::FEWEST_TO_CLEAR) {
            self.forget_unused();
        }
        let new: Arc<str> = name.into();
        self.names.insert(new.clone());
        new
    }

    /// Keeps these labels of the Nodes that are read from now on.
    pub(crate) fn keep_node_labels(&mut self, labels: Arc<[Arc<str>]>) {
        self.node_labels = labels;
    }

    /// Which labels of a Node are kept.
    pub(crate) fn node_labels(&self) -> Arc<[Arc<str>]> {
        Arc::clone(&self.node_labels)
    }

    /// Gives memory back after very many names: a set that grows in the order of its members
    /// is half empty.
    pub(crate) fn pack(&mut self) {
        self.names = std::mem::take(&mut self.names).into_iter().collect();
    }

    fn forget_unused(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.kept = self.names.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_their_text() {
        let mut names = KnownNames::default();
        let first = names.get("default");
        let second = names.get("default");
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn names_that_nobody_uses_are_forgotten() {
        let mut names = KnownNames::default();
        let used = names.get("used");
        for number in 0..100_000 {
            names.get(&format!("passing-{number}"));
        }
        assert!(names.names.len() <= 2 * KnownNames::FEWEST_TO_CLEAR);
        assert!(Arc::ptr_eq(&used, &names.get("used")));
    }
}

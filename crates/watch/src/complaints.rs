//! Objects with something wrong in them: said once, counted, never fatal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::counters::Counters;
use crate::objects::Problem;

/// Which objects are not in order right now.
///
/// An object gets a log line when its problems change, so that one which is
/// delivered again and again does not fill the log, and all objects together get
/// no more than [`Complaints::LINES`] per [`Complaints::WINDOW`].
#[derive(Debug)]
pub(crate) struct Complaints {
    counters: Arc<Counters>,
    known: BTreeMap<(&'static str, String), Vec<Problem>>,
    window_began: Instant,
    lines: u32,
}

impl Complaints {
    const LINES: u32 = 20;
    const WINDOW: Duration = Duration::from_secs(30);

    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            known: BTreeMap::new(),
            window_began: Instant::now(),
            lines: 0,
        }
    }

    /// How many objects are not in order.
    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// Takes note of what is wrong with an object; nothing, if `problems` is empty.
    pub(crate) fn note(&mut self, kind: &'static str, name: &str, mut problems: Vec<Problem>) {
        let key = (kind, name.to_owned());
        if problems.is_empty() {
            self.known.remove(&key);
            return;
        }
        self.counters.add_rejected_object();
        // One line each is enough to go by; the rest of a long list is not kept.
        problems.truncate(5);
        if self.known.get(&key) == Some(&problems) {
            return;
        }
        if self.may_log(Instant::now()) {
            for problem in &problems {
                warn!(
                    kind,
                    object = name,
                    "{problem}; the rest of the object is used"
                );
            }
        }
        self.known.insert(key, problems);
    }

    /// Forgets an object that is gone.
    pub(crate) fn forget(&mut self, kind: &'static str, name: &str) {
        self.known.remove(&(kind, name.to_owned()));
    }

    /// Forgets the objects of a kind that are not in `present`: a list was completed.
    pub(crate) fn retain(&mut self, kind: &'static str, present: &BTreeSet<String>) {
        self.known
            .retain(|(of_kind, name), _| *of_kind != kind || present.contains(name));
    }

    fn may_log(&mut self, now: Instant) -> bool {
        if now.duration_since(self.window_began) >= Self::WINDOW {
            self.window_began = now;
            self.lines = 0;
        }
        self.lines += 1;
        if self.lines == Self::LINES + 1 {
            warn!(
                objects = self.known.len(),
                "more objects have problems than are logged; the metrics count them"
            );
        }
        self.lines <= Self::LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints() -> Complaints {
        Complaints::new(Arc::new(Counters::default()))
    }

    fn problem(message: &str) -> Vec<Problem> {
        vec![Problem {
            path: Vec::new(),
            message: message.to_owned(),
        }]
    }

    #[test]
    fn an_object_put_right_is_no_longer_counted() {
        let mut complaints = complaints();
        complaints.note("Service", "default/a", problem("bad"));
        complaints.note("Service", "default/b", problem("bad"));
        complaints.note("Service", "default/a", Vec::new());
        complaints.forget("Service", "default/b");
        assert_eq!(complaints.count(), 0);
        assert_eq!(complaints.counters.rejected_objects(), 2);
    }

    #[test]
    fn a_completed_list_forgets_objects_that_are_gone() {
        let mut complaints = complaints();
        complaints.note("Service", "default/a", problem("bad"));
        complaints.note("Service", "default/b", problem("bad"));
        complaints.note("Node", "a", problem("bad"));
        complaints.retain("Service", &BTreeSet::from(["default/b".to_owned()]));
        assert_eq!(complaints.count(), 2);
    }

    #[test]
    fn lines_are_bounded_per_window() {
        let mut complaints = complaints();
        let now = Instant::now();
        let logged = (0..1000).filter(|_| complaints.may_log(now)).count();
        assert_eq!(logged, Complaints::LINES as usize);
        assert!(complaints.may_log(now + Complaints::WINDOW));
    }
}

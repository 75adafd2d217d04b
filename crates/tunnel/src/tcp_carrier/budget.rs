//! How many lanes there may be, and how much each may have under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lanes that a node has at a time, made by whomever. Streams beyond it stay where they are.
const MOST_LANES: usize = 64;
/// Bytes that all lanes together may keep to send again.
const IN_ALL: u64 = 64 << 20;
/// What one may keep at most: a gigabit per second over 30 ms.
const MOST_OF_ONE: u64 = 4 << 20;

/// The lanes of a node. Copies are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

/// The place of one lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct LanePlace(Budget);

impl Budget {
    /// A place for one more; none when there are enough.
    pub(super) fn take(&self) -> Option<LanePlace> {
        let one_more = |lanes| (lanes < MOST_LANES).then_some(lanes + 1);
        self.0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| LanePlace(self.clone()))
    }

    /// Lanes that there are.
    pub(crate) fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl LanePlace {
    /// Bytes that may be under way in one direction of the lane now.
    pub(super) fn window(&self) -> u64 {
        window(self.0.in_use())
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn window(lanes: usize) -> u64 {
    (IN_ALL / lanes.max(1) as u64).min(MOST_OF_ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_lanes_than_allowed_and_none_is_left_taken() {
        let budget = Budget::default();
        let all: Vec<_> = (0..MOST_LANES + 5).filter_map(|_| budget.take()).collect();
        assert_eq!(all.len(), MOST_LANES);
        drop(all);
        assert_eq!(budget.in_use(), 0);
        assert!(budget.take().is_some());
    }

    #[test]
    fn all_windows_together_are_bounded_and_none_is_too_small_for_its_words() {
        for lanes in 1..=MOST_LANES {
            assert!(window(lanes) * lanes as u64 <= IN_ALL);
            assert!(window(lanes) >= 2 * super::super::receiving::TAKEN_EVERY);
        }
    }
}

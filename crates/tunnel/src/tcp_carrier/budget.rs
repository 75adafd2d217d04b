//! How many lanes there may be, and how much each may have under way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgemesh_catalog::PublicKey;

/// Lanes that a node has at a time, made by whomever. Streams beyond it stay where they are.
const MOST_LANES: usize = 64;
/// Of these, with one peer: none takes them all, be it by asking for lanes that it never dials.
const MOST_WITH_ONE: usize = 32;
/// Bytes that all lanes together may keep to send again.
const IN_ALL: u64 = 64 << 20;
/// What one may keep at most: a gigabit per second over 30 ms.
const MOST_OF_ONE: u64 = 4 << 20;

/// The lanes of a node. Copies are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    in_all: AtomicUsize,
    by_peers: Mutex<BTreeMap<PublicKey, usize>>,
}

/// The place of one lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct LanePlace {
    budget: Budget,
    peer: PublicKey,
}

impl Budget {
    /// A place for one more with the peer that has this key; none when there are enough.
    pub(super) fn take(&self, peer: PublicKey) -> Option<LanePlace> {
        let mut by_peers = self.by_peers();
        let with_it = by_peers.get(&peer).copied().unwrap_or_default();
        if with_it >= MOST_WITH_ONE || self.in_use() >= MOST_LANES {
            return None;
        }
        by_peers.insert(peer, with_it + 1);
        self.0.in_all.fetch_add(1, Ordering::Relaxed);
        Some(LanePlace {
            budget: self.clone(),
            peer,
        })
    }

    /// Lanes that there are.
    pub(crate) fn in_use(&self) -> usize {
        self.0.in_all.load(Ordering::Relaxed)
    }

    fn by_peers(&self) -> MutexGuard<'_, BTreeMap<PublicKey, usize>> {
        let by_peers = self.0.by_peers.lock();
        by_peers.unwrap_or_else(PoisonError::into_inner)
    }
}

impl LanePlace {
    /// Bytes that may be under way in one direction of the lane now.
    pub(super) fn window(&self) -> u64 {
        window(self.budget.in_use())
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        let mut by_peers = self.budget.by_peers();
        self.budget.0.in_all.fetch_sub(1, Ordering::Relaxed);
        match by_peers.get_mut(&self.peer) {
            Some(with_it) if *with_it > 1 => *with_it -= 1,
            Some(_) | None => {
                by_peers.remove(&self.peer);
            }
        }
    }
}

fn window(lanes: usize) -> u64 {
    (IN_ALL / lanes.max(1) as u64).min(MOST_OF_ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: usize) -> PublicKey {
        PublicKey::from_bytes([n as u8; 32])
    }

    #[test]
    fn there_are_never_more_lanes_than_allowed_and_none_is_left_taken() {
        let budget = Budget::default();
        let all: Vec<_> = (0..MOST_LANES + 5)
            .filter_map(|n| budget.take(peer(n)))
            .collect();
        assert_eq!(all.len(), MOST_LANES);
        drop(all);
        assert_eq!(budget.in_use(), 0);
        assert!(budget.by_peers().is_empty());
        assert!(budget.take(peer(1)).is_some());
    }

    #[test]
    fn no_peer_takes_the_places_of_all() {
        let budget = Budget::default();
        let of_one: Vec<_> = (0..MOST_LANES)
            .filter_map(|_| budget.take(peer(1)))
            .collect();
        assert_eq!(of_one.len(), MOST_WITH_ONE);
        let of_another = budget.take(peer(2));
        assert!(of_another.is_some());
        drop(of_one);
        assert_eq!(budget.in_use(), 1);
        assert!(budget.take(peer(1)).is_some());
    }

    #[test]
    fn all_windows_together_are_bounded_and_none_is_too_small_for_its_words() {
        for lanes in 1..=MOST_LANES {
            assert!(window(lanes) * lanes as u64 <= IN_ALL);
            assert!(window(lanes) >= 2 * super::super::receiving::TAKEN_EVERY);
        }
    }
}

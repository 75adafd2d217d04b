//! Pseudo-random numbers from a seed.

use std::sync::atomic::{AtomicU64, Ordering};

/// A sequence of numbers that the seed decides: SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014). Spreads load; not for secrets.
#[derive(Debug)]
pub(crate) struct Chance(AtomicU64);

impl Chance {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number.
    pub(crate) fn draw(&self) -> u64 {
        let mut z = self
            .0
            .fetch_add(Self::STEP, Ordering::Relaxed)
            .wrapping_add(Self::STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A number below `end` (which must not be 0) out of a random one.
pub(crate) fn below(end: usize, random: u64) -> usize {
    // Multiplying spreads more evenly than the remainder would; the result is below `end`,
    // so it fits.
    let scaled = (u128::from(random) * end as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

/// Puts `items` into an order that `seed` decides.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let chance = Chance::new(seed);
    for i in (1..items.len()).rev() {
        items.swap(i, below(i + 1, chance.draw()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        // First outputs for seed 1234567 as listed for reference implementations.
        let chance = Chance::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| chance.draw()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let chance = Chance::new(1);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[below(7, chance.draw())] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(below(1, u64::MAX), 0);
        assert_eq!(below(3, u64::MAX), 2);
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        shuffle(&mut items, 7);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}

//! Times that are not all the same.

use std::time::Duration;

/// Pseudo-random numbers that the seed decides: SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014). Spreads load; not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// `time`, give or take a fifth.
    pub(crate) fn about(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.8 + 0.4 * self.share())
    }

    /// Any time below `end`.
    pub(crate) fn within(&mut self, end: Duration) -> Duration {
        end.mul_f64(self.share())
    }

    /// A number from 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spread_within_their_bounds() {
        let mut jitter = Jitter::new(7);
        let second = Duration::from_secs(1);
        let times: Vec<Duration> = (0..1000).map(|_| jitter.about(second)).collect();
        let bounds = Duration::from_millis(800)..=Duration::from_millis(1200);
        assert!(times.iter().all(|time| bounds.contains(time)));
        assert!(times.iter().any(|time| *time < Duration::from_millis(850)));
        assert!(times.iter().any(|time| *time > Duration::from_millis(1150)));
        assert!((0..1000).all(|_| jitter.within(second) <= second));
    }
}

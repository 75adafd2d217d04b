//! How often something may happen.

use std::time::{Duration, Instant};

/// So many times a second on average, and up to as many at once. (A token bucket.)
#[derive(Clone, Debug)]
pub(crate) struct Allowance {
    per_second: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// Nothing of it is used yet.
    pub(crate) fn new(per_second: u32, at_once: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second.max(1)),
            most: f64::from(at_once.max(1)),
            left: f64::from(at_once.max(1)),
            at: now,
        }
    }

    /// Whether it may happen once more now; then it has.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }

    /// Whether it is as if nothing had happened for long.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.most
    }

    /// How long until it may happen again.
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_secs_f64((1.0 - self.left).max(0.0) / self.per_second)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = self.most.min(self.left + passed * self.per_second);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_as_time_passes() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, 3, start);
        let taken = (0..9).filter(|_| allowance.take(start)).count();
        assert_eq!(taken, 3);
        let later = start + allowance.pause();
        assert!(allowance.pause() <= Duration::from_millis(100));
        assert!(allowance.take(later + Duration::from_millis(1)));
        assert!(!allowance.take(later));
        assert!(!allowance.is_full(later));
        assert!(allowance.is_full(later + Duration::from_secs(1)));
    }
}

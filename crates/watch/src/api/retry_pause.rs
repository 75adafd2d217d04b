//! How long to wait before trying again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// Pauses that double from a shortest to a longest one, and begin anew after a quiet
/// time of twice the longest.
///
/// A server that accepts every request and breaks every watch counts as failing, so a
/// success alone does not begin anew.
#[derive(Clone, Debug)]
pub(crate) struct RetryPause {
    shortest: Duration,
    longest: Duration,
    next: Duration,
    failed_at: Option<Instant>,
}

impl RetryPause {
    pub(crate) fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest: longest.max(shortest),
            next: shortest,
            failed_at: None,
        }
    }

    /// The pause after a failure at `now`. `chance`, from 0 up to 1, lengthens it by at
    /// most as much again, so that the nodes of a cluster don't come back all at once.
    pub(crate) fn after_failure(&mut self, now: Instant, chance: f64) -> Duration {
        let quiet = |at: Instant| now.duration_since(at) > 2 * self.longest;
        if self.failed_at.is_some_and(quiet) {
            self.next = self.shortest;
        }
        self.failed_at = Some(now);
        let pause = self.next;
        self.next = (2 * pause).min(self.longest);
        pause + pause.mul_f64(chance.clamp(0.0, 1.0))
    }
}

/// A number from 0 up to 1 that nobody can tell beforehand. Good enough to spread load,
/// and nothing else.
pub(crate) fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest() {
        let mut pause = RetryPause::new(SHORTEST, LONGEST);
        let now = Instant::now();
        let seconds = [(); 5].map(|()| pause.after_failure(now, 0.0).as_secs());
        assert_eq!(seconds, [1, 2, 4, 5, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_time_begins_anew() {
        let mut pause = RetryPause::new(SHORTEST, LONGEST);
        let now = Instant::now();
        for _ in 0..5 {
            pause.after_failure(now, 0.0);
        }
        let soon = now + 2 * LONGEST;
        assert_eq!(pause.after_failure(soon, 0.0), LONGEST);
        let later = soon + 2 * LONGEST + SHORTEST;
        assert_eq!(pause.after_failure(later, 0.0), SHORTEST);
    }

    #[tokio::test(start_paused = true)]
    async fn chance_at_most_doubles_a_pause() {
        let mut pause = RetryPause::new(SHORTEST, LONGEST);
        assert_eq!(pause.after_failure(Instant::now(), 1.0), 2 * SHORTEST);
        assert!((0.0..=1.0).contains(&chance()));
    }
}

//! No more requests per second than the operator allows.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets `qps` requests through per second on average, `burst` of them at once.
#[derive(Debug)]
pub(crate) struct RequestRate {
    /// Time between two requests at the average rate.
    interval: Duration,
    burst: u32,
    /// When the next request would be due if none had ever come early.
    due: Mutex<Instant>,
}

impl RequestRate {
    /// `qps` of zero or less, or not a number, means no limit.
    pub(crate) fn new(qps: f64, burst: u32) -> Self {
        let interval = if qps > 0.0 {
            Duration::try_from_secs_f64(1.0 / qps).unwrap_or(Duration::ZERO)
        } else {
            Duration::ZERO
        };
        Self {
            interval,
            burst: burst.max(1),
            due: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the next request's turn.
    pub(crate) async fn turn(&self) {
        let at = self.reserve(Instant::now());
        sleep_until(at).await;
    }

    /// The moment from which a request asked for `now` may be sent.
    fn reserve(&self, now: Instant) -> Instant {
        let ahead = self.interval.saturating_mul(self.burst - 1);
        let mut due = match self.due.lock() {
            Ok(due) => due,
            Err(poisoned) => poisoned.into_inner(),
        };
        let turn = (*due).max(now);
        *due = turn + self.interval;
        now.max(turn.checked_sub(ahead).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_the_average_rate() {
        let rate = RequestRate::new(10.0, 3);
        let now = Instant::now();
        let waits: Vec<u128> = (0..5)
            .map(|_| (rate.reserve(now) - now).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_time_fills_the_burst_again() {
        let rate = RequestRate::new(10.0, 3);
        let now = Instant::now();
        for _ in 0..3 {
            rate.reserve(now);
        }
        let later = now + Duration::from_secs(5);
        let waits: Vec<u128> = (0..4)
            .map(|_| (rate.reserve(later) - later).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_means_no_limit() {
        let rate = RequestRate::new(0.0, 0);
        let now = Instant::now();
        assert!((0..1000).all(|_| rate.reserve(now) == now));
    }
}

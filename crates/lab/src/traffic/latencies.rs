//! How long things took.

use std::fmt;
use std::time::Duration;

/// A number of durations, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    sorted: Vec<Duration>,
}

impl Latencies {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The duration that this share (0 to 1) of them does not exceed: 0.5 is the median.
    /// Zero when there are none.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let wanted = |place: usize| to_f64(place + 1) >= share * to_f64(self.sorted.len());
        let found = (0..self.sorted.len()).find(|place| wanted(*place));
        found
            .and_then(|place| self.sorted.get(place))
            .or(self.sorted.last())
            .copied()
            .unwrap_or_default()
    }

    /// The longest; zero when there are none.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.percentile(1.0)
    }
}

/// Exact for any number of measurements that fits into memory here.
fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, longest {:.1?}",
            self.percentile(0.5),
            self.percentile(0.9),
            self.percentile(0.99),
            self.longest()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_what_that_share_does_not_exceed() {
        let latencies: Latencies = (1..=100).rev().map(Duration::from_millis).collect();
        let ms = |share| latencies.percentile(share).as_millis();
        assert_eq!((ms(0.5), ms(0.99), ms(1.0), ms(0.0)), (50, 99, 100, 1));
        assert_eq!(Latencies::default().longest(), Duration::ZERO);
    }
}

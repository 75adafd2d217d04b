//! How long things took: counted in buckets, so that a million of them cost no memory.

use std::time::Duration;

/// How many buckets each doubling of the time has: a quantile is at most 1/64 too high.
const PER_OCTAVE: u64 = 64;
/// The doublings from 1 ns to beyond 2 minutes.
const OCTAVES: usize = 38;

/// A histogram of durations.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = usize::try_from(PER_OCTAVE).unwrap_or_default() * OCTAVES;
        Self {
            counts: vec![0; buckets],
            count: 0,
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let last = self.counts.len() - 1;
        self.counts[bucket(took).min(last)] += 1;
        self.count += 1;
    }

    /// Counts all that another one has.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.counts.iter_mut().zip(&other.counts) {
            *own += others;
        }
        self.count += other.count;
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time that this share of all (0 to 1) did not exceed; `None` when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        // Share of the count, rounded up: of 100, the 99 % quantile is the 99th.
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return Some(greatest_in(bucket));
            }
        }
        None
    }

    /// [`Self::quantile`] in milliseconds, for tables; not a number when there are none.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> f64 {
        self.quantile(share)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// Below [`PER_OCTAVE`] ns each has its own; above, every octave has as many of equal width.
fn bucket(took: Duration) -> usize {
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let octave = nanoseconds
        .checked_ilog2()
        .unwrap_or_default()
        .saturating_sub(PER_OCTAVE.ilog2());
    let within = nanoseconds >> octave;
    let place = u64::from(octave) * PER_OCTAVE + within;
    usize::try_from(place).unwrap_or(usize::MAX)
}

fn greatest_in(bucket: usize) -> Duration {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    let octave = (bucket / PER_OCTAVE).saturating_sub(1);
    let within = bucket - octave * PER_OCTAVE;
    Duration::from_nanos(((within + 1) << octave) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nanoseconds: impl Iterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        for one in nanoseconds {
            histogram.add(Duration::from_nanos(one));
        }
        histogram
    }

    #[test]
    fn a_quantile_is_never_too_low_and_at_most_a_64th_too_high() {
        for exact in [0, 1, 63, 64, 65, 127, 128, 1000, 123_456, 7_000_000_123] {
            let told = of([exact].into_iter()).quantile(0.5).unwrap();
            let told = u64::try_from(told.as_nanos()).unwrap();
            assert!(told >= exact, "{told} for {exact}");
            assert!(told - exact <= exact / 64, "{told} for {exact}");
        }
    }

    #[test]
    fn quantiles_of_many() {
        let histogram = of((1..=1000).map(|number| number * 1_000_000));
        let close = |share, expected: f64| {
            let told = histogram.quantile_ms(share);
            assert!((expected..expected * 1.02).contains(&told), "{told}");
        };
        close(0.5, 500.0);
        close(0.99, 990.0);
        close(0.999, 999.0);
        close(1.0, 1000.0);
        close(0.0, 1.0);
    }

    #[test]
    fn merged_ones_are_one() {
        let mut low = of(1..=50);
        low.merge(&of(51..=100));
        assert_eq!(low.count(), 100);
        assert_eq!(low.quantile(0.5), of(1..=100).quantile(0.5));
    }

    #[test]
    fn there_is_no_quantile_of_nothing_and_no_time_too_long() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert!(of([u64::MAX].into_iter()).quantile(0.5).is_some());
    }
}

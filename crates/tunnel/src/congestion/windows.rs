//! The greatest and the least of late.

use std::time::{Duration, Instant};

/// The greatest value of this cycle of probing and of the one before
/// (draft-ietf-ccwg-bbr-05 section 5.5.5: `BBR.max_bw`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GreatestOfTwoCycles {
    now: f64,
    before: f64,
}

impl GreatestOfTwoCycles {
    pub(super) fn note(&mut self, value: f64) {
        self.now = self.now.max(value);
    }

    pub(super) fn begin_cycle(&mut self) {
        // A cycle in which nothing was learned forgets nothing.
        if self.now > 0.0 {
            self.before = std::mem::take(&mut self.now);
        }
    }

    pub(super) fn get(&self) -> f64 {
        self.now.max(self.before)
    }
}

/// How far the path is, without what waits on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShortestRoundTrip {
    shortest: Option<(Duration, Instant)>,
    /// The shortest since it was last looked for.
    lately: Option<(Duration, Instant)>,
}

/// The round trip is looked for when it was not seen that short for so long
/// (`BBR.ProbeRTTInterval`).
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(5);
/// What was seen longer ago is not true any more (`BBR.MinRTTFilterLen`).
const TRUE_FOR: Duration = Duration::from_secs(10);

impl ShortestRoundTrip {
    pub(super) fn get(&self) -> Option<Duration> {
        self.shortest.map(|(shortest, _)| shortest)
    }

    /// Notes a round trip. Returns whether it is time to look for a shorter one.
    pub(super) fn note(&mut self, round_trip: Duration, now: Instant) -> bool {
        let is_due = |(_, at): (Duration, Instant)| now.saturating_duration_since(at) > LOOK_AFTER;
        let due = self.lately.is_some_and(is_due);
        if due || self.lately.is_none_or(|(lately, _)| round_trip <= lately) {
            self.lately = Some((round_trip, now));
        }
        let is_old = |(_, at): (Duration, Instant)| now.saturating_duration_since(at) > TRUE_FOR;
        let lately = self.lately;
        let shorter = |(shortest, _)| lately.is_some_and(|(lately, _)| lately <= shortest);
        if self
            .shortest
            .is_none_or(|known| is_old(known) || shorter(known))
        {
            self.shortest = lately;
        }
        due
    }

    /// It was looked for.
    pub(super) fn looked(&mut self, now: Instant) {
        if let Some((_, at)) = &mut self.lately {
            *at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greatest_is_forgotten_after_two_cycles_that_had_values() {
        let mut greatest = GreatestOfTwoCycles::default();
        greatest.note(5.0);
        greatest.note(3.0);
        greatest.begin_cycle();
        greatest.begin_cycle();
        assert_eq!(greatest.get(), 5.0);
        greatest.note(4.0);
        assert_eq!(greatest.get(), 5.0);
        greatest.begin_cycle();
        assert_eq!(greatest.get(), 4.0);
    }

    #[test]
    fn round_trip_is_looked_for_and_a_longer_path_becomes_known() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let (short, long) = (Duration::from_millis(10), Duration::from_millis(30));
        let mut known = ShortestRoundTrip::default();
        assert!(!known.note(short, start));
        assert!(!known.note(long, at(1)));
        assert!(!known.note(long, at(4)));
        assert!(known.note(long, at(6)));
        assert_eq!(known.get(), Some(short));
        assert!(!known.note(long, at(11)));
        assert_eq!(known.get(), Some(long));
        assert!(!known.note(short, at(12)));
        assert_eq!(known.get(), Some(short));
    }
}

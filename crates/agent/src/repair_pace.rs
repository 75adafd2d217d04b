//! How soon what was undone is put back: at once, but not for ever at once. Pure.
//!
//! Whoever undoes our rules does so once, at a restart or by an operator's hand, or keeps
//! doing it, being a program that thinks them wrong. The first is answered at once. With
//! the second one does not race: it costs both sides a processor, and traffic changes hands
//! all the time.

use std::time::Duration;

use tokio::time::Instant;

/// What a repair costs of the credit: so one a second can go on for ever.
const COST: Duration = Duration::from_secs(1);

/// Repairs at once before the first pause.
const CREDIT: Duration = Duration::from_secs(10);

/// The first pause; doubled for each further repair.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest, whatever a repair costs.
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// The longest where a repair costs next to nothing: short enough that even somebody who
/// deletes our rules one by one finds each back within two seconds.
const LAST_CHEAP_PAUSE: Duration = Duration::from_secs(1);

/// A pause need not be longer than so many times the repair before it: that keeps the work
/// of repairing below 2 % of a processor.
const REPAIRS_SHARE: u32 = 50;

/// When the next repair may be made. Times are the caller's, and never go back.
#[derive(Clone, Debug)]
pub(crate) struct RepairPace {
    credit: Duration,
    /// Until when the credit is counted.
    counted: Instant,
    pauses: u32,
    not_before: Instant,
}

/// What a repair made of the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Nothing remarkable.
    AtOnce,
    /// The first pause: somebody keeps undoing what is ours.
    Contested,
    /// One more pause, of this length.
    Pausing(Duration),
}

impl RepairPace {
    /// Full credit.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            credit: CREDIT,
            counted: now,
            pauses: 0,
            not_before: now,
        }
    }

    /// From when on the next repair may be made.
    pub(crate) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Whether somebody kept undoing, and has let go since. True once.
    pub(crate) fn has_calmed_down(&mut self, now: Instant) -> bool {
        self.count(now);
        let calm = self.pauses > 0 && self.credit == CREDIT;
        if calm {
            self.pauses = 0;
        }
        calm
    }

    /// A repair was made, and `took` so long.
    pub(crate) fn repaired(&mut self, now: Instant, took: Duration) -> Pace {
        if self.has_calmed_down(now) {
            self.pauses = 0;
        }
        let paid = self.credit >= COST;
        self.credit = self.credit.saturating_sub(COST);
        // Once there were pauses, they go on growing until the whole credit is back: one
        // who undoes us slowly enough to earn us a repair now and then is at it still.
        if paid && self.pauses == 0 {
            return Pace::AtOnce;
        }
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(self.pauses))
            .min((took * REPAIRS_SHARE).clamp(LAST_CHEAP_PAUSE, LAST_PAUSE));
        self.pauses = self.pauses.saturating_add(1);
        self.not_before = now + pause;
        match self.pauses {
            1 => Pace::Contested,
            _ => Pace::Pausing(pause),
        }
    }

    /// Credit grows in peace, and not while a repair is put off.
    fn count(&mut self, now: Instant) {
        let from = self.counted.max(self.not_before);
        let earned = now.saturating_duration_since(from);
        self.credit = (self.credit + earned).min(CREDIT);
        self.counted = self.counted.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Duration = Duration::from_millis(5);
    const DEAR: Duration = Duration::from_millis(500);

    /// Undone at once after each repair: the times from one repair to the next.
    fn pauses(
        pace: &mut RepairPace,
        now: &mut Instant,
        repairs: usize,
        took: Duration,
    ) -> Vec<Duration> {
        (0..repairs)
            .map(|_| {
                pace.repaired(*now, took);
                let next = pace.not_before().max(*now);
                let waited = next - *now;
                *now = next;
                waited
            })
            .collect()
    }

    #[test]
    fn the_first_repairs_are_made_at_once_and_then_pauses_grow_to_a_limit() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        let waited = pauses(&mut pace, &mut now, 20, DEAR);
        assert_eq!(waited[..10], [Duration::ZERO; 10]);
        let millis: Vec<u128> = waited[10..].iter().map(Duration::as_millis).collect();
        assert_eq!(
            millis,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]
        );
    }

    #[test]
    fn cheap_repairs_are_never_put_off_for_more_than_a_second() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        let waited = pauses(&mut pace, &mut now, 40, CHEAP);
        assert_eq!(waited.iter().max(), Some(&LAST_CHEAP_PAUSE));
    }

    #[test]
    fn a_repair_a_second_is_never_put_off() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        for _ in 0..1000 {
            assert_eq!(pace.repaired(now, CHEAP), Pace::AtOnce);
            assert!(pace.not_before() <= now);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn it_is_said_once_that_precedence_is_contested_and_once_that_it_is_no_more() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        let mut contested = 0;
        for _ in 0..50 {
            contested += usize::from(pace.repaired(now, CHEAP) == Pace::Contested);
            now = pace.not_before().max(now);
            assert!(!pace.has_calmed_down(now));
        }
        assert_eq!(contested, 1);
        now += CREDIT;
        assert!(pace.has_calmed_down(now));
        assert!(!pace.has_calmed_down(now));
        assert_eq!(pace.repaired(now, CHEAP), Pace::AtOnce);
    }

    #[test]
    fn one_who_lets_go_for_less_than_the_credit_is_still_at_it() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        pauses(&mut pace, &mut now, 15, DEAR);
        now += Duration::from_secs(5);
        assert!(matches!(pace.repaired(now, CHEAP), Pace::Pausing(_)));
    }

    #[test]
    fn pauses_never_overflow() {
        let mut now = Instant::now();
        let mut pace = RepairPace::new(now);
        let waited = pauses(&mut pace, &mut now, 200, DEAR);
        assert_eq!(waited.last(), Some(&LAST_PAUSE));
    }
}

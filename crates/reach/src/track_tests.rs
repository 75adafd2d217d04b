use proptest::prelude::*;

use super::*;

const RTT: Duration = Duration::from_millis(2);

/// A track with a clock that is moved by hand.
struct Clock {
    track: Track,
    now: Instant,
    timing: Timing,
    jitter: Jitter,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            track: Track::new(now, now),
            now,
            timing: Timing::default(),
            jitter: Jitter::new(1),
        }
    }

    /// Waits for the next probe; tells how long.
    fn next(&mut self) -> Duration {
        let next = self.track.next().unwrap();
        let waited = next.saturating_duration_since(self.now);
        self.now = self.now.max(next);
        waited
    }

    fn proof(&mut self) -> Duration {
        let waited = self.next();
        self.track.sent(self.now, &self.timing);
        self.now += RTT;
        let period = self.timing.period;
        self.track
            .proved(RTT, self.now, period, &self.timing, &mut self.jitter);
        waited
    }

    fn loss(&mut self) -> Duration {
        let waited = self.next();
        let deadline = self.track.sent(self.now, &self.timing);
        self.now = deadline;
        self.track
            .lost(true, self.now, &self.timing, &mut self.jitter);
        waited
    }

    fn direct(mut self) -> Self {
        for _ in 0..self.timing.proofs {
            self.proof();
        }
        assert!(self.track.is_direct());
        self
    }
}

#[test]
fn an_address_becomes_direct_by_proofs_in_a_row_within_a_second() {
    let mut clock = Clock::new();
    let start = clock.now;
    clock.proof();
    clock.proof();
    assert!(!clock.track.is_direct());
    clock.proof();
    assert!(clock.track.is_direct());
    assert!(clock.now - start < Duration::from_secs(1));
}

#[test]
fn proofs_with_a_loss_between_are_not_in_a_row() {
    let mut clock = Clock::new();
    for _ in 0..4 {
        clock.proof();
        clock.proof();
        clock.loss();
    }
    assert!(!clock.track.is_direct());
}

#[test]
fn who_never_answers_is_asked_less_and_less_often() {
    let mut clock = Clock::new();
    let pauses: Vec<Duration> = (0..12).map(|_| clock.loss()).collect();
    assert_eq!(pauses[0], Duration::ZERO);
    assert!((800..=1200).contains(&pauses[1].as_millis()));
    assert!((1600..=2400).contains(&pauses[2].as_millis()));
    assert!((48_000..=72_000).contains(&pauses[11].as_millis()));
}

#[test]
fn a_direct_address_is_dropped_within_a_second_of_its_first_loss() {
    let mut clock = Clock::new().direct();
    clock.next();
    let start = clock.now;
    for _ in 0..clock.timing.losses {
        assert!(clock.track.is_direct());
        clock.loss();
    }
    assert!(!clock.track.is_direct());
    assert!(clock.now - start < Duration::from_secs(1));
}

#[test]
fn single_losses_do_no_harm() {
    let mut clock = Clock::new().direct();
    for _ in 0..10 {
        clock.loss();
        clock.loss();
        assert_eq!(clock.proof(), Duration::ZERO);
        assert!(clock.track.is_direct());
    }
}

#[test]
fn a_distant_peer_is_given_the_time_that_its_answers_take() {
    let mut clock = Clock::new();
    for _ in 0..3 {
        clock.next();
        clock.track.sent(clock.now, &clock.timing);
        let slow = Duration::from_millis(200);
        let period = clock.timing.period;
        clock
            .track
            .proved(slow, clock.now, period, &clock.timing, &mut clock.jitter);
    }
    let deadline = clock.track.sent(clock.now, &clock.timing);
    assert_eq!(deadline - clock.now, Duration::from_millis(600));
}

#[test]
fn who_was_dropped_waits_longer_each_time_until_it_was_calm() {
    let mut clock = Clock::new().direct();
    let mut wait = |calm: bool| {
        if calm {
            clock.now += clock.timing.calm;
        }
        for _ in 0..clock.timing.losses {
            clock.loss();
        }
        let dropped = clock.now;
        while !clock.track.is_direct() {
            clock.proof();
        }
        (clock.now - dropped).as_secs()
    };
    assert_eq!(wait(false), 2);
    assert_eq!(wait(false), 4);
    assert_eq!(wait(false), 8);
    assert_eq!(wait(true), 2);
    for _ in 0..10 {
        wait(false);
    }
    assert!((60..62).contains(&wait(false)));
}

#[test]
fn evidence_has_it_probed_at_once_even_behind_a_probe_under_way() {
    let mut clock = Clock::new().direct();
    clock.track.recheck(clock.now);
    assert_eq!(clock.next(), Duration::ZERO);
    clock.track.sent(clock.now, &clock.timing);
    clock.track.recheck(clock.now);
    // That answer may have been under way already when it happened.
    let period = clock.timing.period;
    clock
        .track
        .proved(RTT, clock.now, period, &clock.timing, &mut clock.jitter);
    assert_eq!(clock.proof(), Duration::ZERO);
    assert!(clock.proof() > Duration::from_secs(3));
}

#[test]
fn evidence_gives_who_never_answered_a_new_chance() {
    let mut clock = Clock::new();
    for _ in 0..10 {
        clock.loss();
    }
    clock.track.recheck(clock.now);
    assert_eq!(clock.loss(), Duration::ZERO);
    assert!(clock.next() < Duration::from_secs(2));
}

proptest! {
    #[test]
    fn whatever_happens_there_is_one_probe_to_come_or_under_way(steps: Vec<u8>) {
        let mut clock = Clock::new();
        let mut in_a_row = 0;
        for step in steps {
            match step % 4 {
                0 => { clock.proof(); in_a_row += 1; }
                1 => { clock.loss(); in_a_row = 0; }
                2 => clock.track.recheck(clock.now),
                _ => clock.now += Duration::from_secs(u64::from(step)),
            }
            prop_assert!(clock.track.next().is_some());
            if in_a_row == 0 && clock.track.is_direct() {
                let few = |standing| matches!(standing, Standing::Direct { losses: 0..3, .. });
                prop_assert!(few(clock.track.standing()));
            }
        }
    }
}

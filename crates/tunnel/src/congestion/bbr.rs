//! The controller itself: how much may be under way, and how fast it goes out.
//!
//! Names of states and constants are those of draft-ietf-ccwg-bbr-05; what is different is
//! told in [the module above](super).

mod amounts;
mod bounds;
mod phases;

use std::time::{Duration, Instant};

use self::phases::PROBE_WAIT;
use super::deliveries::{Deliveries, Purpose, Sample};
use super::losses::{LossFloor, Tally};
use super::windows::{GreatestOfTwoCycles, ShortestRoundTrip};

/// A rate that grows by less is no growth, and after so many rounds without it the path is full.
const GROWTH: f64 = 1.25;
const ROUNDS_TO_FULL: u32 = 3;
const INITIAL_PACKETS: u64 = 10;
/// The most that goes out at once, in bytes and in time.
const MOST_AT_ONCE: u64 = 64 * 1024;
const AT_ONCE: f64 = 0.001;
/// Rounds for which the excess of acknowledgements that come in bunches is remembered.
const EXCESS_ROUNDS: u64 = 10;

/// What the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// Looking for the path's rate, twice as fast each round.
    Startup,
    /// Letting go what has piled up by that.
    Drain { until_round: u64 },
    /// Sending less than the path delivers, until nothing waits and a round longer.
    Down { empty_since: Option<u64> },
    /// Sending as much as the path delivers.
    Cruise,
    /// The same, with all room that there is, to be ready for more.
    Refill,
    /// Sending more, to find out whether the path delivers more now.
    Up { rounds: u32 },
    /// Sending little for a moment, to find out how far the path is.
    ProbeRtt { until: Option<(Instant, u64)> },
}

/// Whether the rate has stopped growing.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    rate: f64,
    rounds: u32,
}

/// Acknowledgements that come in bunches: how much more than the rate tells has come at once.
#[derive(Clone, Copy, Debug, Default)]
struct Excess {
    since: Option<Instant>,
    delivered: u64,
    most: GreatestOfTwoCycles,
    cycle_at: u64,
}

/// Controls one path.
#[derive(Clone, Debug)]
pub(super) struct Bbr {
    /// Bytes of the largest packet.
    size: u64,
    deliveries: Deliveries,
    phase: Phase,
    chance: u64,

    round: u64,
    round_ends_at: u64,
    is_round_start: bool,

    /// Bytes per second.
    most_rate: GreatestOfTwoCycles,
    round_trip: ShortestRoundTrip,
    excess: Excess,
    growth: Growth,
    /// The path was found to be full once.
    was_full: bool,

    floor: LossFloor,
    /// Of this round.
    of_round: Tally,
    /// Of those sent to find out whether there is more, since that began.
    of_probe: Tally,
    was_marked: bool,
    /// Bounds learned from congestion: while probing, and since the last probe.
    high: Option<u64>,
    low: Option<(f64, u64)>,
    before_loss: (Option<u64>, Option<(f64, u64)>),
    rate_of_round: f64,
    delivered_in_round: u64,

    cycle_began: Option<Instant>,
    probe_wait: Duration,
    rounds_since_probe: u64,
    is_window_limited: bool,

    window: u64,
    window_before: u64,
    /// Bytes per second; none before the first round trip.
    pacing: Option<f64>,
}

impl Bbr {
    /// For a path whose packets are of `size` bytes at most. `chance` is any number.
    pub(super) fn new(size: u16, chance: u64) -> Self {
        let size = u64::from(size);
        Self {
            size,
            deliveries: Deliveries::default(),
            phase: Phase::Startup,
            chance: chance | 1,
            round: 0,
            round_ends_at: 0,
            is_round_start: false,
            most_rate: GreatestOfTwoCycles::default(),
            round_trip: ShortestRoundTrip::default(),
            excess: Excess::default(),
            growth: Growth::default(),
            was_full: false,
            floor: LossFloor::default(),
            of_round: Tally::default(),
            of_probe: Tally::default(),
            was_marked: false,
            high: None,
            low: None,
            before_loss: (None, None),
            rate_of_round: 0.0,
            delivered_in_round: 0,
            cycle_began: None,
            probe_wait: PROBE_WAIT,
            rounds_since_probe: 0,
            is_window_limited: false,
            window: INITIAL_PACKETS * size,
            window_before: 0,
            pacing: None,
        }
    }

    /// Bytes that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Bytes that may be under way before anything is known.
    pub(super) fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.size
    }

    /// Bytes per second that go out; none before the first round trip.
    pub(super) fn pacing(&self) -> Option<u64> {
        self.pacing.map(|rate| (rate as u64).max(1))
    }

    /// Bytes that go out at once.
    pub(super) fn at_once(&self) -> Option<u64> {
        let of_time = |rate: f64| ((rate * AT_ONCE) as u64).min(MOST_AT_ONCE);
        self.pacing.map(|rate| of_time(rate).max(2 * self.size))
    }

    /// What the path delivers, in bytes per second.
    pub(super) fn rate(&self) -> f64 {
        let most = self.most_rate.get();
        self.low.map_or(most, |(rate, _)| most.min(rate))
    }

    /// What it is doing.
    #[cfg(test)]
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// The largest packet is of `size` bytes now.
    pub(super) fn set_size(&mut self, size: u16) {
        self.size = u64::from(size);
        self.window = self.window.max(self.least_window());
    }

    /// A packet goes out.
    pub(super) fn sent(&mut self, now: Instant, bytes: u16, number: u64) {
        if self.deliveries.in_flight() == 0 {
            self.excess.since = None;
        }
        let would_be = self.deliveries.in_flight() + u64::from(bytes);
        let purpose = self.purpose(would_be);
        self.deliveries.sent(now, bytes, number, purpose);
    }

    fn purpose(&self, in_flight: u64) -> Purpose {
        match self.phase {
            Phase::Startup | Phase::Up { .. } => Purpose::Probe,
            Phase::Drain { .. } | Phase::Down { .. } | Phase::ProbeRtt { .. }
                if in_flight <= self.held(1.0) =>
            {
                Purpose::Low
            }
            _ => Purpose::Steady,
        }
    }

    /// There was more to send than may be under way.
    pub(super) fn limited_by_window(&mut self) {
        self.is_window_limited = true;
    }

    /// A packet was acknowledged; [`Bbr::end_of_batch`] follows.
    pub(super) fn acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64, number: u64) {
        let purpose = self.deliveries.acknowledged(now, sent, bytes, number);
        self.of_round.delivered += 1;
        match purpose {
            Some(Purpose::Low) => self.floor.learn(false),
            Some(Purpose::Probe) => self.of_probe.delivered += 1,
            Some(Purpose::Steady) | None => {}
        }
    }

    /// A packet is lost.
    pub(super) fn lost(&mut self, bytes: u16, number: u64, now: Instant) {
        if self.of_round.lost == 0 {
            self.before_loss = (self.high, self.low);
        }
        let purpose = self.deliveries.lost(bytes, number);
        self.of_round.lost += 1;
        match purpose {
            Some(Purpose::Low) => self.floor.learn(true),
            Some(Purpose::Probe) => {
                self.of_probe.lost += 1;
                self.check_probe(now);
            }
            Some(Purpose::Steady) | None => {}
        }
    }

    /// Packets were marked on their way: there is congestion (RFC 3168).
    pub(super) fn marked(&mut self) {
        self.was_marked = true;
    }

    /// Nothing came through for long (RFC 9002 section 7.6).
    pub(super) fn collapsed(&mut self) {
        self.window_before = self.window_before.max(self.window);
        self.window = self.least_window();
    }

    /// What was taken for lost had only come late.
    pub(super) fn was_not_lost(&mut self) {
        (self.high, self.low) = self.before_loss;
        self.of_round.lost = 0;
        self.of_probe.lost = 0;
    }

    /// All packets of a batch were told. `in_flight` bytes are under way now; `is_limited`
    /// tells whether the application has no more to send.
    pub(super) fn end_of_batch(&mut self, now: Instant, in_flight: u64, is_limited: bool) {
        let shortest = self.round_trip.get();
        let ended = self
            .deliveries
            .end_of_batch(now, in_flight, is_limited, shortest);
        let Some(sample) = ended else {
            return;
        };
        self.count_rounds(&sample);
        self.note_rate(&sample);
        self.note_excess(&sample, now);
        let look_for_round_trip = self.round_trip.note(sample.round_trip, now);
        if self.is_round_start {
            self.heed_losses();
            self.note_growth(&sample);
        }
        self.grow_bound(&sample);
        self.move_on(now);
        if look_for_round_trip {
            self.begin_probe_rtt();
        }
        if self.is_round_start {
            self.of_round = Tally::default();
            self.rate_of_round = 0.0;
            self.delivered_in_round = 0;
            self.is_window_limited = false;
        }
        self.set_pacing();
        self.set_window(&sample);
    }

    fn count_rounds(&mut self, sample: &Sample) {
        self.is_round_start = sample.delivered_before >= self.round_ends_at;
        if self.is_round_start {
            self.begin_round();
            self.round += 1;
            self.rounds_since_probe += 1;
        }
    }

    fn begin_round(&mut self) {
        self.round_ends_at = self.deliveries.delivered();
    }

    fn note_rate(&mut self, sample: &Sample) {
        let Some(rate) = sample.rate else {
            return;
        };
        self.rate_of_round = self.rate_of_round.max(rate);
        self.delivered_in_round = self.delivered_in_round.max(sample.delivered);
        if !sample.is_limited || rate >= self.most_rate.get() {
            self.most_rate.note(rate);
        }
    }

    fn note_excess(&mut self, sample: &Sample, now: Instant) {
        let excess = &mut self.excess;
        let most = self.most_rate.get();
        let since = *excess.since.get_or_insert(now);
        let expected = most * now.saturating_duration_since(since).as_secs_f64();
        if excess.delivered as f64 <= expected || expected == 0.0 {
            (excess.since, excess.delivered) = (Some(now), 0);
        }
        excess.delivered += sample.acknowledged;
        let since = excess.since.unwrap_or(now);
        let expected = most * now.saturating_duration_since(since).as_secs_f64();
        let more = (excess.delivered as f64 - expected).max(0.0);
        if self.round >= excess.cycle_at + EXCESS_ROUNDS / 2 {
            excess.cycle_at = self.round;
            excess.most.begin_cycle();
        }
        excess.most.note(more.min(self.window as f64));
    }

    fn note_growth(&mut self, sample: &Sample) {
        if sample.is_limited {
            return;
        }
        let rate = self.rate_of_round;
        if rate >= self.growth.rate * GROWTH {
            self.growth = Growth { rate, rounds: 0 };
        } else {
            self.growth.rounds += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.growth.rounds >= ROUNDS_TO_FULL
    }
}

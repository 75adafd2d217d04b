//! The controller itself: how much may be under way, and how fast it goes out.
//!
//! Names of states and constants are those of draft-ietf-ccwg-bbr-05; what is different is
//! told in [the module above](super).

use std::time::{Duration, Instant};

use super::deliveries::{Deliveries, Purpose, Sample};
use super::losses::{LossFloor, Tally};
use super::windows::{GreatestOfTwoCycles, ShortestRoundTrip};

/// Doubles the rate each round trip: 4 ln 2.
const STARTUP_GAIN: f64 = 2.773;
const DRAIN_GAIN: f64 = 0.5;
const DOWN_GAIN: f64 = 0.9;
const UP_GAIN: f64 = 1.25;
/// What may be under way, in what the path holds.
const WINDOW_GAIN: f64 = 2.0;
const UP_WINDOW_GAIN: f64 = 2.25;
const PROBE_RTT_WINDOW_GAIN: f64 = 0.5;
/// A little less than the path delivers, so that what waits on it grows less (`1 -
/// BBR.PacingMarginPercent`).
const MARGIN: f64 = 0.99;
/// How much is left to others of what was found to be too much (`1 - BBR.Headroom`).
const HEADROOM: f64 = 0.85;
/// What remains after congestion, of the rate and of what is under way (`BBR.Beta`).
const BETA: f64 = 0.7;
/// A rate that grows by less is no growth, and after so many rounds without it the path is full.
const GROWTH: f64 = 1.25;
const ROUNDS_TO_FULL: u32 = 3;
/// Startup ends when more than this share of a round is lost, in so many packets at least.
const STARTUP_LOSS: f64 = 0.08;
const STARTUP_LOSSES: u32 = 8;
const PROBE_RTT: Duration = Duration::from_millis(200);
/// Between two probes for more bandwidth: at least so long, up to as much longer by chance ...
const PROBE_WAIT: Duration = Duration::from_millis(2000);
const PROBE_WAIT_MORE: u64 = 1000;
/// ... or as many rounds as Reno takes to grow by a window, but not more.
const PROBE_ROUNDS: u64 = 62;
const INITIAL_PACKETS: u64 = 10;
const LEAST_PACKETS: u64 = 4;
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
        if look_for_round_trip && !matches!(self.phase, Phase::ProbeRtt { .. }) {
            self.window_before = self.window_before.max(self.window);
            self.phase = Phase::ProbeRtt { until: None };
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

    /// Draws the conclusions of a round.
    fn heed_losses(&mut self) {
        let was_marked = std::mem::take(&mut self.was_marked);
        let is_congested = was_marked || self.floor.is_exceeded_by(self.of_round);
        match self.phase {
            Phase::Startup => {
                let Tally { delivered, lost } = self.of_round;
                let share = f64::from(lost) / f64::from((delivered + lost).max(1));
                let too_many = lost >= STARTUP_LOSSES && share > STARTUP_LOSS;
                if was_marked || too_many {
                    self.high = Some(self.held(1.0).max(self.delivered_in_round));
                    self.growth.rounds = ROUNDS_TO_FULL;
                }
            }
            Phase::Cruise | Phase::Down { .. } if is_congested => {
                let (rate, held) = self.low.unwrap_or((self.most_rate.get(), self.window));
                let rate = self.rate_of_round.max(rate * BETA);
                let held = self.delivered_in_round.max((held as f64 * BETA) as u64);
                self.low = Some((rate, held));
            }
            Phase::Drain { .. }
            | Phase::Down { .. }
            | Phase::Cruise
            | Phase::Refill
            | Phase::Up { .. }
            | Phase::ProbeRtt { .. } => {}
        }
    }

    /// Ends the search for more when that costs too many packets.
    fn check_probe(&mut self, now: Instant) {
        let probes = matches!(
            self.phase,
            Phase::Up { .. } | Phase::Down { .. } | Phase::Cruise
        );
        if probes && self.was_full && self.floor.is_exceeded_by(self.of_probe) {
            let least = (self.held(1.0).min(self.window) as f64 * BETA) as u64;
            let bound = self.delivered_in_round.max(self.held(1.0)).max(least);
            self.high = Some(self.high.map_or(bound, |high| high.min(bound)));
            self.of_probe = Tally::default();
            if matches!(self.phase, Phase::Up { .. }) {
                self.go_down(now);
            }
        }
    }

    /// Raises the bound while looking for more, by what can be under way without congestion.
    fn grow_bound(&mut self, sample: &Sample) {
        let (Some(high), Phase::Up { rounds }) = (self.high, self.phase) else {
            return;
        };
        let is_at_bound = self.is_window_limited && self.window >= high;
        let growth = self.size << rounds.min(30);
        let by = if is_at_bound {
            sample.acknowledged.saturating_mul(growth) / self.window.max(1)
        } else {
            0
        };
        self.high = Some(high.max(sample.in_flight) + by);
        if is_at_bound {
            // It is our own bound that keeps the rate from growing.
            self.growth.rounds = 0;
        }
    }

    fn move_on(&mut self, now: Instant) {
        match self.phase {
            Phase::Startup => {
                if self.is_full() {
                    self.was_full = true;
                    let until_round = self.round + 3;
                    self.phase = Phase::Drain { until_round };
                }
            }
            Phase::Drain { until_round } => {
                let is_drained = self.deliveries.in_flight() <= self.held(1.0);
                if is_drained || self.round > until_round {
                    self.go_down(now);
                }
            }
            Phase::Down { empty_since } => self.cruise_when_empty(empty_since, now),
            Phase::Cruise => self.refill_when_due(now),
            Phase::Refill => {
                if self.is_round_start {
                    self.phase = Phase::Up { rounds: 0 };
                    self.of_probe = Tally::default();
                    self.growth = Growth {
                        rate: self.rate_of_round,
                        rounds: 0,
                    };
                    self.begin_round();
                }
            }
            Phase::Up { rounds } => {
                if self.is_full() {
                    self.go_down(now);
                } else if self.is_round_start {
                    self.phase = Phase::Up { rounds: rounds + 1 };
                }
            }
            Phase::ProbeRtt { until } => self.end_probe_rtt(until, now),
        }
    }

    fn go_down(&mut self, now: Instant) {
        self.most_rate.begin_cycle();
        self.cycle_began = Some(now);
        self.chance = step(self.chance);
        self.probe_wait = PROBE_WAIT + Duration::from_millis(self.chance % PROBE_WAIT_MORE);
        self.rounds_since_probe = self.chance >> 32 & 1;
        self.phase = Phase::Down { empty_since: None };
        self.begin_round();
    }

    fn cruise_when_empty(&mut self, empty_since: Option<u64>, now: Instant) {
        let most = self.with_headroom().unwrap_or(u64::MAX).min(self.held(1.0));
        let empty_since = match empty_since {
            None if self.deliveries.in_flight() <= most => Some(self.round),
            known => known,
        };
        self.phase = Phase::Down { empty_since };
        // A round longer, in which it is seen what is lost anyway.
        if empty_since.is_some_and(|since| self.round >= since + 2) {
            self.phase = Phase::Cruise;
        }
        self.refill_when_due(now);
    }

    fn refill_when_due(&mut self, now: Instant) {
        let began = self.cycle_began.unwrap_or(now);
        let rounds = self.held(1.0).min(self.window) / self.size.max(1);
        let is_due = now.saturating_duration_since(began) >= self.probe_wait
            || self.rounds_since_probe >= rounds.clamp(1, PROBE_ROUNDS);
        if is_due {
            self.low = None;
            self.phase = Phase::Refill;
            self.begin_round();
        }
    }

    fn end_probe_rtt(&mut self, until: Option<(Instant, u64)>, now: Instant) {
        match until {
            None if self.deliveries.in_flight() <= self.probe_rtt_window() => {
                self.begin_round();
                let until = Some((now + PROBE_RTT, self.round + 1));
                self.phase = Phase::ProbeRtt { until };
            }
            Some((over, round)) if now >= over && self.round >= round => {
                self.round_trip.looked(now);
                self.window = self.window.max(std::mem::take(&mut self.window_before));
                self.low = None;
                if self.was_full {
                    self.go_down(now);
                    self.phase = Phase::Cruise;
                } else {
                    self.phase = Phase::Startup;
                }
            }
            None | Some(_) => {}
        }
    }

    fn set_pacing(&mut self) {
        let gain = match self.phase {
            Phase::Startup => STARTUP_GAIN,
            Phase::Drain { .. } => DRAIN_GAIN,
            Phase::Down { .. } => DOWN_GAIN,
            Phase::Up { .. } => UP_GAIN,
            Phase::Cruise | Phase::Refill | Phase::ProbeRtt { .. } => 1.0,
        };
        let rate = gain * self.rate() * MARGIN;
        // Until the path was full once, a sample that is too low slows nothing down.
        if rate > 0.0 && (self.was_full || self.pacing.is_none_or(|known| rate > known)) {
            self.pacing = Some(rate);
        }
    }

    fn set_window(&mut self, sample: &Sample) {
        let gain = match self.phase {
            Phase::Up { .. } => UP_WINDOW_GAIN,
            _ => WINDOW_GAIN,
        };
        let most = self.held(gain) + self.excess.most.get() as u64 + self.slack();
        if self.was_full {
            self.window = (self.window + sample.acknowledged).min(most);
        } else if self.window < most || self.deliveries.delivered() < self.initial_window() {
            self.window += sample.acknowledged;
        }
        let bound = match self.phase {
            Phase::Cruise => self.with_headroom(),
            Phase::ProbeRtt { .. } => Some(self.probe_rtt_window()),
            Phase::Down { .. } | Phase::Refill | Phase::Up { .. } => self.high,
            Phase::Startup | Phase::Drain { .. } => None,
        };
        let low = self.low.map(|(_, held)| held);
        for bound in [bound, low].into_iter().flatten() {
            self.window = self.window.min(bound);
        }
        self.window = self.window.max(self.least_window());
    }

    /// What the path holds, times `gain`, in bytes.
    fn held(&self, gain: f64) -> u64 {
        match self.round_trip.get() {
            Some(shortest) => (gain * self.rate() * shortest.as_secs_f64()) as u64,
            None => self.initial_window(),
        }
    }

    /// What is needed to keep sending while acknowledgements and packets go in bunches.
    fn slack(&self) -> u64 {
        3 * self.at_once().unwrap_or(self.size)
    }

    fn with_headroom(&self) -> Option<u64> {
        self.high.map(|high| (high as f64 * HEADROOM) as u64)
    }

    fn probe_rtt_window(&self) -> u64 {
        self.held(PROBE_RTT_WINDOW_GAIN).max(self.least_window())
    }

    fn least_window(&self) -> u64 {
        LEAST_PACKETS * self.size
    }
}

/// The next of a row of numbers that look like chance (George Marsaglia's xorshift64).
fn step(mut chance: u64) -> u64 {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^ (chance << 17)
}

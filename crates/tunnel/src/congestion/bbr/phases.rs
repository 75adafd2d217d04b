//! Which phase follows which, and when.

use std::time::{Duration, Instant};

use super::{Bbr, Growth, Phase};
use crate::congestion::losses::Tally;

const PROBE_RTT: Duration = Duration::from_millis(200);
/// Between two probes for more bandwidth: at least so long, up to as much longer by chance ...
pub(super) const PROBE_WAIT: Duration = Duration::from_millis(2000);
const PROBE_WAIT_MORE: u64 = 1000;
/// ... or as many rounds as Reno takes to grow by a window, but not more.
const PROBE_ROUNDS: u64 = 62;

impl Bbr {
    pub(super) fn move_on(&mut self, now: Instant) {
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

    pub(super) fn go_down(&mut self, now: Instant) {
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

    pub(super) fn begin_probe_rtt(&mut self) {
        if !matches!(self.phase, Phase::ProbeRtt { .. }) {
            self.window_before = self.window_before.max(self.window);
            self.phase = Phase::ProbeRtt { until: None };
        }
    }

    fn end_probe_rtt(&mut self, until: Option<(Instant, u64)>, now: Instant) {
        match until {
            None if self.deliveries.in_flight() <= self.probe_rtt_window() => {
                self.begin_round();
                let until = Some((now + PROBE_RTT, self.round + 1));
                self.phase = Phase::ProbeRtt { until };
            }
            Some((over, round)) if now >= over && self.round >= round => self.leave_probe_rtt(now),
            None | Some(_) => {}
        }
    }

    fn leave_probe_rtt(&mut self, now: Instant) {
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
}

/// The next of a row of numbers that look like chance (George Marsaglia's xorshift64).
fn step(mut chance: u64) -> u64 {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^ (chance << 17)
}

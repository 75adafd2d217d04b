//! What congestion teaches: how much was too much.

use std::time::Instant;

use super::{Bbr, Phase, ROUNDS_TO_FULL};
use crate::congestion::deliveries::Sample;
use crate::congestion::losses::Tally;

/// What remains after congestion, of the rate and of what is under way (`BBR.Beta`).
const BETA: f64 = 0.7;
/// Startup ends when more than this share of a round is lost, in so many packets at least.
const STARTUP_LOSS: f64 = 0.08;
const STARTUP_LOSSES: u32 = 8;

impl Bbr {
    /// Draws the conclusions of a round.
    pub(super) fn heed_losses(&mut self) {
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
    pub(super) fn check_probe(&mut self, now: Instant) {
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
    pub(super) fn grow_bound(&mut self, sample: &Sample) {
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
}

//! How fast packets go out, and how many bytes may be under way.

use super::{Bbr, Phase};
use crate::congestion::deliveries::Sample;

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
const LEAST_PACKETS: u64 = 4;

impl Bbr {
    pub(super) fn set_pacing(&mut self) {
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

    pub(super) fn set_window(&mut self, sample: &Sample) {
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
    pub(super) fn held(&self, gain: f64) -> u64 {
        match self.round_trip.get() {
            Some(shortest) => (gain * self.rate() * shortest.as_secs_f64()) as u64,
            None => self.initial_window(),
        }
    }

    /// What is needed to keep sending while acknowledgements and packets go in bunches.
    fn slack(&self) -> u64 {
        3 * self.at_once().unwrap_or(self.size)
    }

    pub(super) fn with_headroom(&self) -> Option<u64> {
        self.high.map(|high| (high as f64 * HEADROOM) as u64)
    }

    pub(super) fn probe_rtt_window(&self) -> u64 {
        self.held(PROBE_RTT_WINDOW_GAIN).max(self.least_window())
    }

    pub(super) fn least_window(&self) -> u64 {
        LEAST_PACKETS * self.size
    }
}

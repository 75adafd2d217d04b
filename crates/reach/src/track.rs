//! What is known of one address of a peer: whether it is reached without the tunnel. Pure.

use std::time::{Duration, Instant};

use crate::jitter::Jitter;
use crate::timing::Timing;

/// One address under observation.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    standing: Standing,
    /// Since when it stands so.
    since: Instant,
    /// When it is to be probed; none while a probe is under way.
    next: Option<Instant>,
    /// Whether something happened since the probe that is under way was sent, so that what
    /// comes of it is old news.
    again: bool,
    /// Not direct again before; none for who never was, or not for long.
    not_before: Option<Instant>,
    /// How long it had to wait the last time.
    hold: Duration,
}

/// How an address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has not proved itself, or not often enough.
    Unproved {
        /// Proofs in a row.
        proofs: u32,
        /// Probes in a row without one.
        losses: u32,
    },
    /// It is reached without the tunnel.
    Direct {
        /// Probes in a row without a proof.
        losses: u32,
        /// The last round trip.
        round_trip: Duration,
    },
}

impl Track {
    /// An address of which nothing is known.
    pub(crate) fn new(now: Instant, first: Instant) -> Self {
        Self {
            standing: Standing::Unproved {
                proofs: 0,
                losses: 0,
            },
            since: now,
            next: Some(first),
            again: false,
            not_before: None,
            hold: Duration::ZERO,
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.standing, Standing::Direct { .. })
    }

    /// Whether it waits although it proves itself, for it was not to be relied on.
    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|end| now < end)
    }

    /// A probe is sent; when it counts as lost.
    pub(crate) fn sent(&mut self, now: Instant, timing: &Timing) -> Instant {
        self.next = None;
        self.again = false;
        let patience = match self.standing {
            Standing::Unproved { .. } => timing.first_answer,
            Standing::Direct { round_trip, .. } => {
                let patience = timing.answer.max(round_trip * 3);
                patience.min(timing.first_answer)
            }
        };
        now + patience
    }

    /// The probe under way was answered with proof. `period` is when a direct address is asked
    /// again.
    pub(crate) fn proved(
        &mut self,
        round_trip: Duration,
        now: Instant,
        period: Duration,
        timing: &Timing,
        jitter: &mut Jitter,
    ) {
        let pause = match &mut self.standing {
            Standing::Direct {
                losses,
                round_trip: last,
            } => {
                (*losses, *last) = (0, round_trip);
                jitter.about(period)
            }
            Standing::Unproved { proofs, losses } => {
                *proofs = proofs.saturating_add(1);
                *losses = 0;
                let is_proved = *proofs >= timing.proofs;
                match self.not_before.filter(|end| is_proved && now < *end) {
                    Some(end) => (end - now).clamp(timing.between_proofs, timing.retry_min),
                    None if is_proved => {
                        self.stand(
                            Standing::Direct {
                                losses: 0,
                                round_trip,
                            },
                            now,
                        );
                        jitter.about(period)
                    }
                    None => timing.between_proofs,
                }
            }
        };
        self.next = Some(if self.again { now } else { now + pause });
    }

    /// The probe under way got no proof in time, or could not be sent.
    pub(crate) fn lost(
        &mut self,
        was_sent: bool,
        now: Instant,
        timing: &Timing,
        jitter: &mut Jitter,
    ) {
        let pause = match &mut self.standing {
            Standing::Direct { losses, .. } => {
                *losses = losses.saturating_add(1);
                if *losses >= timing.losses {
                    return self.drop_now(now, timing);
                }
                // Who got no answer has waited already.
                if was_sent {
                    Duration::ZERO
                } else {
                    timing.between_proofs
                }
            }
            Standing::Unproved { proofs, losses } => {
                *proofs = 0;
                let doubled = timing.retry_min.saturating_mul(1 << (*losses).min(16));
                *losses = losses.saturating_add(1);
                jitter.about(doubled.min(timing.retry_max))
            }
        };
        self.next = Some(if self.again { now } else { now + pause });
    }

    /// It is direct no more, and for a while at least.
    pub(crate) fn drop_now(&mut self, now: Instant, timing: &Timing) {
        let was_calm = now.saturating_duration_since(self.since) >= timing.calm;
        let before = if was_calm { Duration::ZERO } else { self.hold };
        self.hold = (before * 2).clamp(timing.hold_min, timing.hold_max);
        self.not_before = Some(now + self.hold);
        self.stand(
            Standing::Unproved {
                proofs: 0,
                losses: 0,
            },
            now,
        );
        self.next = Some(now + timing.between_proofs);
    }

    /// Something happened that may have changed how it is reached: it is probed at once, and
    /// one that did not answer has a new chance.
    pub(crate) fn recheck(&mut self, now: Instant) {
        if let Standing::Unproved { losses, .. } = &mut self.standing {
            *losses = 0;
        }
        match self.next {
            Some(next) => self.next = Some(next.min(now)),
            None => self.again = true,
        }
    }

    fn stand(&mut self, standing: Standing, now: Instant) {
        self.standing = standing;
        self.since = now;
    }
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;

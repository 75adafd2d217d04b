//! Tells losses that this end causes from those that happen anyway.
//!
//! A radio link loses packets however few are sent. What is lost of packets that are sent
//! while no more is under way than the path holds is the path's own *floor*. More than that,
//! beyond what chance explains, is congestion.

/// Losses beyond the floor that are borne: the 2 % of draft-ietf-ccwg-bbr-05 section 2.7
/// (`BBR.LossThresh`).
const BORNE: f64 = 0.02;
/// What is taken for the floor before anything is known, and how many packets it takes to
/// outweigh that.
const ASSUMED: f64 = 0.01;
const WEIGHT: f64 = 100.0;
/// No floor is higher: who loses more is to slow down, whosever fault it is.
const HIGHEST: f64 = 0.05;
/// Packets that the floor is known from; those of earlier count half when there are as many.
const MEMORY: f64 = 2000.0;
/// By how many standard deviations losses must exceed what is expected.
const DEVIATIONS: f64 = 2.0;
/// Fewer losses tell nothing.
const FEWEST: u32 = 3;

/// Packets of one kind, and how many of them were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) delivered: u32,
    pub(super) lost: u32,
}

/// What a path loses anyway.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossFloor {
    packets: f64,
    lost: f64,
}

impl Default for LossFloor {
    fn default() -> Self {
        Self {
            packets: WEIGHT,
            lost: WEIGHT * ASSUMED,
        }
    }
}

impl LossFloor {
    /// The fate of a packet that was sent when nothing was in its way.
    pub(super) fn learn(&mut self, was_lost: bool) {
        if self.packets >= MEMORY {
            self.packets /= 2.0;
            self.lost /= 2.0;
        }
        self.packets += 1.0;
        if was_lost {
            self.lost += 1.0;
        }
    }

    /// The share of packets that is lost anyway.
    pub(super) fn share(&self) -> f64 {
        (self.lost / self.packets).min(HIGHEST)
    }

    /// Whether so many losses mean congestion.
    pub(super) fn is_exceeded_by(&self, tally: Tally) -> bool {
        let sent = f64::from(tally.delivered) + f64::from(tally.lost);
        let expected = sent * (self.share() + BORNE);
        tally.lost >= FEWEST && f64::from(tally.lost) > expected + DEVIATIONS * expected.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learned(packets: u32, every: u32) -> LossFloor {
        let mut floor = LossFloor::default();
        for packet in 0..packets {
            floor.learn(packet % every == 0);
        }
        floor
    }

    #[test]
    fn floor_is_what_is_lost_anyway() {
        let floor = learned(5000, 50);
        assert!((floor.share() - 0.02).abs() < 0.002, "{floor:?}");
        // As much again, and what chance adds, is not congestion; twice of that is.
        let of_1000 = |lost| Tally {
            delivered: 1000 - lost,
            lost,
        };
        assert!(!floor.is_exceeded_by(of_1000(50)));
        assert!(floor.is_exceeded_by(of_1000(60)));
    }

    #[test]
    fn clean_path_bears_little() {
        let floor = learned(5000, 5001);
        let of_1000 = |lost| Tally {
            delivered: 1000 - lost,
            lost,
        };
        assert!(!floor.is_exceeded_by(of_1000(20)));
        assert!(floor.is_exceeded_by(of_1000(32)));
    }

    #[test]
    fn few_packets_prove_nothing() {
        let floor = LossFloor::default();
        assert!(!floor.is_exceeded_by(Tally {
            delivered: 2,
            lost: 2
        }));
        assert!(floor.is_exceeded_by(Tally {
            delivered: 10,
            lost: 5
        }));
    }

    proptest! {
        #[test]
        fn a_third_lost_is_congestion_on_every_path(every in 1_u32..200, packets in 0_u32..5000) {
            let floor = learned(packets, every);
            prop_assert!(floor.share() <= HIGHEST);
            let third = Tally { delivered: 40, lost: 20 };
            prop_assert!(floor.is_exceeded_by(third));
        }
    }
}

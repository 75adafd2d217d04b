//! What is counted about probes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::answerer::Refused;

/// What came of this node's own probes and of those of others.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    unsendable: AtomicU64,
    proved: AtomicU64,
    lost: AtomicU64,
    odd: AtomicU64,
    answered: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
}

macro_rules! counted {
    ($($(#[$doc:meta])* $name:ident, $count:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            }

            pub(crate) fn $count(&self) {
                self.$name.fetch_add(1, Ordering::Relaxed);
            }
        )*
    };
}

impl Counters {
    counted! {
        /// Probes that were sent.
        sent, count_sent;
        /// Probes that could not be sent, for want of a route.
        unsendable, count_unsendable;
        /// Answers that were proof.
        proved, count_proved;
        /// Probes that nobody answered in time.
        lost, count_lost;
        /// Datagrams to this node's probing sockets that were no proof: late, from somewhere
        /// else than was asked, or not signed by who was asked for.
        odd, count_odd;
        /// Probes of others that were answered.
        answered, count_answered;
    }

    /// Probes of others that were not answered for this reason.
    #[must_use]
    pub fn refused(&self, reason: Refused) -> u64 {
        self.slot(reason)
            .map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    pub(crate) fn count_refused(&self, reason: Refused) {
        if let Some(slot) = self.slot(reason) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn slot(&self, reason: Refused) -> Option<&AtomicU64> {
        let mut all = Refused::ALL.iter().zip(&self.refused);
        all.find(|(known, _)| **known == reason)
            .map(|(_, slot)| slot)
    }
}

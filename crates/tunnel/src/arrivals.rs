//! How many datagrams were lost on their way: the receiver's half
//! ([`crate::stretches`] is the other). Pure: time is an argument.
//!
//! Each datagram says whether it was sent in an even or an odd stretch of time, and a tally
//! tells later how many there were in a stretch. What has not come a moment after the tally
//! counts as lost. What comes even later stands for one of the next stretch of its kind, and
//! so does what came of that stretch before its predecessor was settled: sums are right
//! however it all overtakes each other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use edgemesh_wire::Tally;

/// How long a datagram may take longer than the tally that counts it.
pub(crate) const LATE: Duration = Duration::from_secs(1);
/// Tallies that wait at once: as many as a sender has in the time for which silence is borne,
/// should all come at the end of it, and some.
const MOST_TALLIES: usize = 64;

/// What came by one connection.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// Of even and odd stretches, as far as they are not settled.
    came: [u64; 2],
    /// Of which kind the next tally is.
    next_is_odd: bool,
    tallies: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    heard_at: Instant,
    is_odd: bool,
    sent: u64,
}

/// A peer told of more stretches than any has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more tallies of datagrams at once than any honest peer tells")]
pub(crate) struct TooManyTallies;

impl Arrivals {
    /// A datagram has come.
    pub(crate) fn came(&mut self, is_odd: bool) {
        self.came[usize::from(is_odd)] += 1;
    }

    /// The peer has told how many there were.
    pub(crate) fn told(&mut self, tally: Tally, now: Instant) -> Result<(), TooManyTallies> {
        if self.tallies.len() == MOST_TALLIES {
            return Err(TooManyTallies);
        }
        self.tallies.push_back(Waiting {
            heard_at: now,
            is_odd: self.next_is_odd,
            sent: u64::from(tally.sent),
        });
        self.next_is_odd = !self.next_is_odd;
        Ok(())
    }

    /// How many are known to be lost since this was asked last.
    pub(crate) fn lost(&mut self, now: Instant) -> u64 {
        self.settle(|tally| now >= tally.heard_at + LATE)
    }

    /// How many are lost of those that were told of: nothing comes any more.
    pub(crate) fn end(&mut self) -> u64 {
        self.settle(|_| true)
    }

    fn settle(&mut self, is_due: impl Fn(&Waiting) -> bool) -> u64 {
        let mut lost = 0;
        while let Some(Waiting { is_odd, sent, .. }) = self.tallies.pop_front_if(|t| is_due(t)) {
            let came = &mut self.came[usize::from(is_odd)];
            lost += sent.saturating_sub(*came);
            *came = came.saturating_sub(sent);
        }
        lost
    }
}

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;

//! How many datagrams were sent, told by stretches of time: the sender's half of counting what
//! is lost ([`crate::arrivals`] is the other). Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use edgemesh_wire::Tally;

/// How long a stretch is at least, from when the one before was told of. Longer than the other
/// side waits for late ones, so that those of a stretch and of the next but one, which carry
/// the same mark, seldom meet.
const LENGTH: Duration = Duration::from_secs(2);
/// A peer that was heard so long after it was told of a stretch knows of it.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The stretches of one connection, and how many datagrams belong to each.
#[derive(Debug, Default)]
pub(crate) struct Stretches {
    /// The one that goes on.
    is_odd: bool,
    sent: u32,
    /// Since when the next may begin, but for its length.
    since: Option<Instant>,
    /// One that is over, with datagrams that have not left yet.
    over: Option<Over>,
    /// Bytes that were given to the transport.
    given: u64,
    /// A datagram that waits for the transport to take it.
    in_hand: Option<InHand>,
    /// Those that the peer may not have heard of yet.
    told: VecDeque<(Instant, u32)>,
}

#[derive(Debug)]
struct Over {
    sent: u32,
    /// They have left when the transport has sent so many bytes.
    until: u64,
}

#[derive(Clone, Copy, Debug)]
struct InHand {
    is_odd: bool,
    bytes: u64,
}

impl Stretches {
    /// Whether what is sent now belongs to an odd one.
    pub(crate) fn is_odd(&self) -> bool {
        self.is_odd
    }

    /// A datagram, marked as [`Stretches::is_odd`] says, is about to be given to the transport.
    pub(crate) fn take_in_hand(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(1).min(Tally::MOST);
        self.in_hand = Some(InHand {
            is_odd: self.is_odd,
            bytes: bytes as u64,
        });
    }

    /// The transport has taken it.
    pub(crate) fn was_given(&mut self) {
        if let Some(in_hand) = self.in_hand.take() {
            self.given += in_hand.bytes;
        }
    }

    /// The transport did not take it, and never will.
    pub(crate) fn was_not_given(&mut self) {
        let Some(InHand { is_odd, bytes }) = self.in_hand.take() else {
            return;
        };
        match &mut self.over {
            Some(over) if is_odd != self.is_odd => {
                over.sent -= 1;
                over.until -= bytes;
            }
            Some(_) | None => self.sent -= 1,
        }
    }

    /// What is to be told, now that `buffered` bytes of what was given have not left.
    pub(crate) fn tally(&mut self, now: Instant, buffered: usize) -> Option<Tally> {
        if self.over.is_none() && self.is_long_enough(now) {
            let in_hand = self.in_hand.map_or(0, |in_hand| in_hand.bytes);
            self.over = Some(Over {
                sent: self.sent,
                until: self.given + in_hand,
            });
            (self.is_odd, self.sent) = (!self.is_odd, 0);
        }
        let left = self.given.saturating_sub(buffered as u64);
        let Over { sent, .. } = self.over.take_if(|over| left >= over.until)?;
        self.since = Some(now);
        self.told.retain(|(at, _)| now < *at + 2 * TOLD_WITHIN);
        self.told.push_back((now, sent));
        Some(Tally { sent })
    }

    fn is_long_enough(&self, now: Instant) -> bool {
        // What is in hand may yet be given back, and none is told of that has no datagram.
        let surely = self.sent - u32::from(self.in_hand.is_some());
        surely > 0 && self.since.is_none_or(|since| now >= since + LENGTH)
    }

    /// The connection is over, and nothing was heard of the peer since `heard`: how many
    /// datagrams it was, or may have been, never told of.
    pub(crate) fn end(&mut self, heard: Instant) -> u32 {
        self.was_not_given();
        let over = self.over.take().map_or(0, |over| over.sent);
        let told = std::mem::take(&mut self.told);
        let unheard = told.iter().filter(|(at, _)| heard < *at + TOLD_WITHIN);
        let untold = over.saturating_add(std::mem::take(&mut self.sent));
        unheard.fold(untold, |sum, (_, sent)| sum.saturating_add(*sent))
    }
}

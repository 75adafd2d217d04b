//! A link with delay, jitter, loss, reordering and a rate, made in user space: it needs no
//! `sch_netem` in the kernel.

mod cable;
mod model;

use std::time::Duration;

pub use cable::EmulatedLink;

/// The way a packet goes over a link: uplinks are made from the site's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the near end to the far one: from a site to the internet.
    Up,
    /// Back.
    Down,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// What one direction of a link does to packets. By default nothing.
///
/// Words and meaning are those of tc-netem(8), with two differences: jitter alone never
/// changes the order of packets, and the queue is counted in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct LinkConditions {
    /// How long each packet is under way; half the round trip of a symmetric link.
    pub delay: Duration,
    /// By how much the delay differs at most, evenly in both directions.
    pub jitter: Duration,
    /// The share of packets that get lost, 0 to 1.
    pub loss: f64,
    /// The share of packets that overtake others by skipping the delay, 0 to 1.
    pub reordering: f64,
    /// Bits per second, IP headers included; `None`: no limit.
    pub rate: Option<u64>,
    /// How many bytes wait for a limited rate before further packets are dropped (drop-tail).
    pub queue: usize,
}

impl Default for LinkConditions {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reordering: 0.0,
            rate: None,
            queue: 256 * 1024,
        }
    }
}

impl LinkConditions {
    /// A link that only delays, by this much each way.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// With this much jitter.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// With this share of packets lost, 0 to 1.
    pub fn loss(mut self, share: f64) -> Self {
        self.loss = share;
        self
    }

    /// With this share of packets that overtake, 0 to 1.
    pub fn reordering(mut self, share: f64) -> Self {
        self.reordering = share;
        self
    }

    /// At most this many bits per second, with a queue of this many bytes before it.
    pub fn rate(mut self, bits_per_second: u64, queue: usize) -> Self {
        self.rate = Some(bits_per_second);
        self.queue = queue;
        self
    }
}

/// What one direction of a link has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStatistics {
    /// Packets that reached the other end.
    pub delivered: u64,
    /// Bytes that reached the other end, IP headers included.
    pub delivered_bytes: u64,
    /// Packets lost as the conditions ask for.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub dropped: u64,
    /// Packets that overtook others.
    pub overtook: u64,
    /// Packets the other end's kernel refused to take: its device was down.
    pub refused: u64,
}

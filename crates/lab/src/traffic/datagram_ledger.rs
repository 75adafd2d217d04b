//! Which datagrams were sent and what came back for them: plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::latencies::Latencies;
use super::pattern::Pattern;

/// A datagram of at least this size says whose and which it is.
const LABEL: usize = 16;

/// What became of a number of datagrams, each of which should have come back as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatagramReport {
    /// How many were sent.
    pub sent: usize,
    /// How many came back as they were.
    pub answered: usize,
    /// How many did not come back.
    pub lost: usize,
    /// How many came back that nobody sent: cut, merged or changed.
    pub altered: usize,
    /// How many came back that another client had sent.
    pub foreign: usize,
    /// How many came back once more.
    pub duplicated: usize,
    /// How many came back after one that was sent later.
    pub reordered: usize,
    /// How long those that came back took.
    pub round_trips: Latencies,
}

impl DatagramReport {
    /// Checks that whatever came back was right and came once; some may be lost.
    ///
    /// # Errors
    ///
    /// When something else came: says how much of what.
    pub fn check_nothing_wrong(&self) -> Result<()> {
        let wrong = self.altered + self.foreign + self.duplicated;
        ensure!(wrong == 0, "{self}");
        Ok(())
    }

    /// Checks that all came back, once and as they were.
    ///
    /// # Errors
    ///
    /// When not: says what came.
    pub fn check_all_answered(&self) -> Result<()> {
        self.check_nothing_wrong()?;
        ensure!(self.lost == 0, "{self}");
        Ok(())
    }

    pub(super) fn sum_up(reports: Vec<(Self, Vec<Duration>)>) -> Self {
        let mut sum = Self::default();
        let mut all = Vec::new();
        for (report, round_trips) in reports {
            sum.sent += report.sent;
            sum.answered += report.answered;
            sum.lost += report.lost;
            sum.altered += report.altered;
            sum.foreign += report.foreign;
            sum.duplicated += report.duplicated;
            sum.reordered += report.reordered;
            all.extend(round_trips);
        }
        sum.round_trips = all.into_iter().collect();
        sum
    }
}

impl fmt::Display for DatagramReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            answered,
            lost,
            altered,
            foreign,
            duplicated,
            reordered,
            round_trips,
        } = self;
        write!(
            formatter,
            "of {sent} datagrams {answered} were answered and {lost} lost; {altered} altered, \
             {foreign} of other clients, {duplicated} duplicated, {reordered} reordered; \
             {round_trips}"
        )
    }
}

/// The account of one client.
#[derive(Debug)]
pub(super) struct Ledger {
    client: u64,
    sent: u64,
    waiting: BTreeMap<u64, Waiting>,
    last_answered: Option<u64>,
    report: DatagramReport,
    round_trips: Vec<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    size: usize,
    since: Duration,
}

impl Ledger {
    pub(super) fn new(client: u64) -> Self {
        Self {
            client,
            sent: 0,
            waiting: BTreeMap::new(),
            last_answered: None,
            report: DatagramReport::default(),
            round_trips: Vec::new(),
        }
    }

    /// A datagram of `size` bytes to be sent at `now`.
    pub(super) fn next(&mut self, size: usize, now: Duration) -> Vec<u8> {
        let number = self.sent;
        self.sent += 1;
        self.report.sent += 1;
        self.waiting.insert(number, Waiting { size, since: now });
        content(self.client, number, size)
    }

    /// How many wait for an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.waiting.len()
    }

    /// How many were sent, and how many of them were answered.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.report.sent, self.report.answered)
    }

    /// Takes down what came.
    pub(super) fn settle(&mut self, datagram: &[u8], now: Duration) {
        match self.recognize(datagram) {
            Found::Answer(number) => {
                if let Some(waiting) = self.waiting.remove(&number) {
                    self.round_trips.push(now.saturating_sub(waiting.since));
                }
                self.report.answered += 1;
                if self.last_answered.is_some_and(|last| last > number) {
                    self.report.reordered += 1;
                }
                self.last_answered = self.last_answered.max(Some(number));
            }
            Found::Again => self.report.duplicated += 1,
            Found::Foreign => self.report.foreign += 1,
            Found::Altered => self.report.altered += 1,
        }
    }

    /// What is not answered now is lost.
    pub(super) fn close(mut self) -> (DatagramReport, Vec<Duration>) {
        self.report.lost = self.waiting.len();
        (self.report, self.round_trips)
    }

    fn recognize(&self, datagram: &[u8]) -> Found {
        let Some((client, number)) = label(datagram) else {
            // Too small for a label: whichever of that size waits.
            let found = self.waiting.iter().find(|(number, waiting)| {
                waiting.size == datagram.len()
                    && content(self.client, **number, waiting.size) == datagram
            });
            return found.map_or(Found::Altered, |(number, _)| Found::Answer(*number));
        };
        let is_whole = content(client, number, datagram.len()) == datagram;
        match self.waiting.get(&number) {
            _ if client != self.client && is_whole => Found::Foreign,
            _ if client != self.client => Found::Altered,
            Some(waiting) if is_whole && waiting.size == datagram.len() => Found::Answer(number),
            None if is_whole && number < self.sent => Found::Again,
            Some(_) | None => Found::Altered,
        }
    }
}

enum Found {
    Answer(u64),
    Again,
    Foreign,
    Altered,
}

/// Client and number where there is room for them, then bytes that follow from both.
fn content(client: u64, number: u64, size: usize) -> Vec<u8> {
    let seed = client.rotate_left(32) ^ number;
    if size < LABEL {
        return Pattern::bytes(seed, size);
    }
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(client.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend(Pattern::bytes(seed, size - LABEL));
    bytes
}

fn label(datagram: &[u8]) -> Option<(u64, u64)> {
    let client = datagram.get(..8)?.try_into().ok()?;
    let number = datagram.get(8..LABEL)?.try_into().ok()?;
    Some((u64::from_be_bytes(client), u64::from_be_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn each_thing_that_can_happen_to_a_datagram_is_told_apart() {
        let mut ledger = Ledger::new(7);
        let sent: Vec<Vec<u8>> = (0..6).map(|_| ledger.next(100, NOW)).collect();
        ledger.settle(&sent[1], NOW);
        ledger.settle(&sent[0], NOW);
        ledger.settle(&sent[0], NOW);
        ledger.settle(&sent[2][..50], NOW);
        ledger.settle(&[sent[3].as_slice(), &sent[4]].concat(), NOW);
        ledger.settle(&Ledger::new(8).next(100, NOW), NOW);
        let (report, _) = ledger.close();
        let expected = DatagramReport {
            sent: 6,
            answered: 2,
            lost: 4,
            altered: 2,
            foreign: 1,
            duplicated: 1,
            reordered: 1,
            round_trips: Latencies::default(),
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn datagrams_too_small_for_a_label_are_known_by_their_bytes() {
        let mut ledger = Ledger::new(7);
        for size in 0..20 {
            let datagram = ledger.next(size, NOW);
            assert_eq!(datagram.len(), size);
            ledger.settle(&datagram, NOW);
        }
        ledger.settle(&[1, 2, 3], NOW);
        let (report, _) = ledger.close();
        assert_eq!((report.answered, report.lost, report.altered), (20, 0, 1));
    }
}

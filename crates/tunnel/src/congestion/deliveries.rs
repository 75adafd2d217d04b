//! What has been sent, delivered and lost, and how fast it was delivered.
//!
//! A sample of the delivery rate is taken for each batch of acknowledgements, from the packet
//! sent last among those acknowledged: what was delivered since it was sent, by the longer of
//! the times that it took to send and to acknowledge that much (draft-ietf-ccwg-bbr-05
//! section 4.1; the rate can't be overestimated by acknowledgements that come in a bunch).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A packet whose fate is not known although one of so many later was acknowledged has been
/// forgotten by the transport: its key is gone, or it was a probe of the path's packet size.
/// (Of any other it tells the loss once the third after it was acknowledged, RFC 9002 section
/// 6.1.1.) It must not stay: what was settled behind it stays with it.
const LATE: u64 = 64;
/// The same for one whose fate is not known this long after it was sent, where nothing is
/// acknowledged.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What a packet was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// With no more under way than the path holds, and more slowly than it delivers: what is
    /// lost of these is lost whatever this end does.
    Low,
    /// As fast as the path delivers.
    Steady,
    /// Faster, to find out whether there is more.
    Probe,
}

/// Accounts of one path.
#[derive(Clone, Debug, Default)]
pub(super) struct Deliveries {
    delivered: u64,
    delivered_at: Option<Instant>,
    /// When the packet was sent that was delivered last.
    first_sent: Option<Instant>,
    in_flight: u64,
    /// Samples are limited by the application until so much is delivered; 0 if they are not.
    limited_until: u64,
    packets: VecDeque<Packet>,
    /// The largest number that was acknowledged since numbers began, before this batch: what is
    /// lost by that is told behind the batch.
    acknowledged_to: u64,
    batch: Batch,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    number: u64,
    purpose: Purpose,
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    in_flight: u64,
    is_limited: bool,
    is_settled: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    acknowledged: u64,
    newest: Option<Packet>,
    round_trip: Option<Duration>,
}

/// What a batch of acknowledgements tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second; none when it took less than a round trip can.
    pub(super) rate: Option<f64>,
    /// The application had not enough to send.
    pub(super) is_limited: bool,
    /// The shortest round trip of the batch.
    pub(super) round_trip: Duration,
    /// Bytes that were acknowledged.
    pub(super) acknowledged: u64,
    /// Bytes that had been delivered when the newest of the packets was sent.
    pub(super) delivered_before: u64,
    /// Bytes that were delivered since.
    pub(super) delivered: u64,
    /// Bytes that were under way when it was sent, with it.
    pub(super) in_flight: u64,
}

impl Deliveries {
    /// Bytes delivered so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes under way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// A packet goes out.
    pub(super) fn sent(&mut self, now: Instant, size: u16, number: u64, purpose: Purpose) {
        if self
            .packets
            .back()
            .is_some_and(|last| last.number >= number)
        {
            // Numbers begin anew with the keys: packets of before are as good as settled.
            self.packets.clear();
            self.acknowledged_to = 0;
        }
        if self.in_flight == 0 {
            self.first_sent = Some(now);
            self.delivered_at = Some(now);
        }
        self.in_flight += u64::from(size);
        self.packets.push_back(Packet {
            number,
            purpose,
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at.unwrap_or(now),
            first_sent: self.first_sent.unwrap_or(now),
            in_flight: self.in_flight,
            is_limited: self.limited_until != 0,
            is_settled: false,
        });
    }

    /// A packet was acknowledged. Returns what it was sent for, if it is known.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        number: u64,
    ) -> Option<Purpose> {
        self.delivered += bytes;
        self.delivered_at = Some(now);
        self.batch.acknowledged += bytes;
        let round_trip = now.saturating_duration_since(sent);
        let shortest = self
            .batch
            .round_trip
            .map_or(round_trip, |r| r.min(round_trip));
        self.batch.round_trip = Some(shortest);
        let packet = self.settle(number)?;
        let newer = |newest: Packet| (packet.sent, number) > (newest.sent, newest.number);
        if self.batch.newest.is_none_or(newer) {
            self.batch.newest = Some(packet);
        }
        Some(packet.purpose)
    }

    /// A packet is lost. Returns what it was sent for, if it is known.
    pub(super) fn lost(&mut self, bytes: u16, number: u64) -> Option<Purpose> {
        self.in_flight = self.in_flight.saturating_sub(u64::from(bytes));
        self.settle(number).map(|packet| packet.purpose)
    }

    /// The batch is complete; `in_flight` bytes are under way now, and `is_limited` tells
    /// whether the application has no more to send. None when nothing was learned.
    pub(super) fn end_of_batch(
        &mut self,
        now: Instant,
        in_flight: u64,
        is_limited: bool,
        shortest: Option<Duration>,
    ) -> Option<Sample> {
        self.in_flight = in_flight;
        if self.limited_until != 0 && self.delivered > self.limited_until {
            self.limited_until = 0;
        }
        if is_limited {
            self.limited_until = (self.delivered + in_flight).max(1);
        }
        self.forget(now);
        let Batch {
            acknowledged,
            newest,
            round_trip,
        } = std::mem::take(&mut self.batch);
        let (newest, round_trip) = (newest?, round_trip?);
        self.acknowledged_to = self.acknowledged_to.max(newest.number);
        self.first_sent = Some(newest.sent);
        let sending = newest.sent.saturating_duration_since(newest.first_sent);
        let delivering = now.saturating_duration_since(newest.delivered_at);
        let took = sending.max(delivering);
        let delivered = self.delivered - newest.delivered;
        let is_plausible = !took.is_zero() && shortest.is_none_or(|shortest| took >= shortest);
        Some(Sample {
            rate: is_plausible.then(|| delivered as f64 / took.as_secs_f64()),
            is_limited: newest.is_limited,
            round_trip,
            acknowledged,
            delivered_before: newest.delivered,
            delivered,
            in_flight: newest.in_flight,
        })
    }

    fn settle(&mut self, number: u64) -> Option<Packet> {
        let first = self.packets.front()?.number;
        // Numbers mostly follow each other.
        let guess = usize::try_from(number.checked_sub(first)?).ok();
        let guess = guess.filter(|at| self.packets.get(*at).is_some_and(|p| p.number == number));
        let found = || {
            self.packets
                .binary_search_by_key(&number, |p| p.number)
                .ok()
        };
        let at = guess.or_else(found)?;
        let packet = self
            .packets
            .get_mut(at)
            .filter(|packet| !packet.is_settled)?;
        packet.is_settled = true;
        Some(*packet)
    }

    fn forget(&mut self, now: Instant) {
        let is_over = |packet: &Packet| {
            packet.is_settled
                || packet.number.saturating_add(LATE) < self.acknowledged_to
                || now.saturating_duration_since(packet.sent) > FORGOTTEN
        };
        while self.packets.front().is_some_and(is_over) {
            self.packets.pop_front();
        }
    }

    /// Packets that are remembered.
    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.packets.len()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    const SIZE: u16 = 1000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends a packet each millisecond and has it acknowledged after `round_trip`.
    fn steady(deliveries: &mut Deliveries, start: Instant, packets: u64, round_trip: u64) -> f64 {
        let mut rate = 0.0;
        for at in 0..packets + round_trip {
            let now = start + ms(at);
            if let Some(number) = at.checked_sub(round_trip) {
                let sent = start + ms(number);
                deliveries.acknowledged(now, sent, u64::from(SIZE), number);
                let in_flight = deliveries.in_flight() - u64::from(SIZE);
                let sample = deliveries.end_of_batch(now, in_flight, false, None);
                rate = sample.unwrap().rate.unwrap_or(rate);
            }
            if at < packets {
                deliveries.sent(now, SIZE, at, Purpose::Steady);
            }
        }
        rate
    }

    #[test]
    fn rate_is_what_was_delivered_by_the_time_it_took() {
        let mut deliveries = Deliveries::default();
        let rate = steady(&mut deliveries, Instant::now(), 200, 20);
        assert!((rate - 1e6).abs() < 6e4, "{rate}");
        assert_eq!(deliveries.delivered(), 200_000);
        assert_eq!((deliveries.in_flight(), deliveries.remembered()), (0, 0));
    }

    #[test]
    fn acknowledgements_in_a_bunch_do_not_raise_the_rate() {
        let start = Instant::now();
        let mut deliveries = Deliveries::default();
        for number in 0..50 {
            deliveries.sent(start + ms(number), SIZE, number, Purpose::Steady);
        }
        let now = start + ms(60);
        for number in 0..50 {
            deliveries.acknowledged(now, start + ms(number), u64::from(SIZE), number);
        }
        let sample = deliveries.end_of_batch(now, 0, false, None).unwrap();
        assert!(sample.rate.unwrap() < 1.05e6, "{sample:?}");
    }

    #[test]
    fn samples_are_limited_until_what_was_under_way_is_delivered() {
        let start = Instant::now();
        let mut deliveries = Deliveries::default();
        deliveries.sent(start, SIZE, 0, Purpose::Steady);
        deliveries.end_of_batch(start, 1000, true, None);
        deliveries.sent(start, SIZE, 1, Purpose::Steady);
        let now = start + ms(10);
        deliveries.acknowledged(now, start, 1000, 0);
        assert!(
            !deliveries
                .end_of_batch(now, 1000, false, None)
                .unwrap()
                .is_limited
        );
        deliveries.sent(now, SIZE, 2, Purpose::Steady);
        deliveries.acknowledged(now, start, 1000, 1);
        assert!(
            deliveries
                .end_of_batch(now, 1000, false, None)
                .unwrap()
                .is_limited
        );
        deliveries.sent(now, SIZE, 3, Purpose::Steady);
        let now = start + ms(20);
        deliveries.acknowledged(now, start, 1000, 3);
        assert!(
            !deliveries
                .end_of_batch(now, 0, false, None)
                .unwrap()
                .is_limited
        );
    }

    /// Sends packets of these numbers, and has all but the first acknowledged at once.
    fn all_but_the_first(deliveries: &mut Deliveries, now: Instant, numbers: Range<u64>) {
        for number in numbers.clone() {
            deliveries.sent(now, SIZE, number, Purpose::Steady);
        }
        for number in numbers.skip(1) {
            deliveries.acknowledged(now, now, u64::from(SIZE), number);
        }
        deliveries.end_of_batch(now, u64::from(SIZE), false, None);
    }

    #[test]
    fn a_packet_that_the_transport_forgot_keeps_no_later_ones() {
        let now = Instant::now();
        let mut deliveries = Deliveries::default();
        all_but_the_first(&mut deliveries, now, 0..2 * LATE);
        assert_eq!(deliveries.remembered() as u64, 2 * LATE);
        all_but_the_first(&mut deliveries, now, 2 * LATE..2 * LATE + 2);
        assert_eq!(deliveries.remembered(), 2);
        // Numbers that begin anew are not late.
        deliveries.sent(now, SIZE, 0, Purpose::Steady);
        deliveries.end_of_batch(now, u64::from(SIZE), false, None);
        assert_eq!(deliveries.lost(SIZE, 0), Some(Purpose::Steady));
    }

    #[test]
    fn a_loss_is_known_when_it_is_told_behind_the_batch_that_shows_it() {
        let now = Instant::now();
        let mut deliveries = Deliveries::default();
        all_but_the_first(&mut deliveries, now, 0..10 * LATE);
        assert_eq!(deliveries.lost(SIZE, 0), Some(Purpose::Steady));
    }

    #[test]
    fn packets_of_which_nothing_is_heard_are_forgotten() {
        let start = Instant::now();
        let mut deliveries = Deliveries::default();
        deliveries.sent(start, SIZE, 0, Purpose::Steady);
        deliveries.sent(start, SIZE, 1, Purpose::Steady);
        deliveries.acknowledged(start, start, 1000, 1);
        deliveries.end_of_batch(start, 0, false, None);
        assert_eq!(deliveries.remembered(), 2);
        deliveries.end_of_batch(start + FORGOTTEN + ms(1), 0, false, None);
        assert_eq!(deliveries.remembered(), 0);
        // Another space begins to count anew.
        deliveries.sent(start, SIZE, 7, Purpose::Steady);
        deliveries.sent(start, SIZE, 0, Purpose::Low);
        assert_eq!(deliveries.lost(SIZE, 7), None);
        assert_eq!(deliveries.lost(SIZE, 0), Some(Purpose::Low));
        assert_eq!(deliveries.lost(SIZE, 0), None);
    }
}

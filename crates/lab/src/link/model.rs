//! What happens to a packet, and when: without clock, sockets or chance of its own.

use std::time::Duration;

use super::LinkConditions;
use crate::splitmix::SplitMix;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives at this time.
    Arrives(Duration),
    /// It arrives at this time, before others that were sent earlier.
    Overtakes(Duration),
    /// It gets lost on the way.
    Lost,
    /// It finds the queue full.
    Dropped,
}

/// One direction of a link. Times are counted from its beginning.
#[derive(Debug)]
pub(super) struct LinkModel {
    conditions: LinkConditions,
    random: SplitMix,
    /// When the last packet that waits for the rate will have been sent.
    sending_until: Duration,
    /// When the last packet that keeps its place arrives.
    last_arrival: Duration,
}

impl LinkModel {
    pub(super) fn new(conditions: LinkConditions, seed: u64) -> Self {
        Self {
            conditions,
            random: SplitMix::new(seed),
            sending_until: Duration::ZERO,
            last_arrival: Duration::ZERO,
        }
    }

    /// Packets under way keep the times they have; later ones still don't overtake them.
    pub(super) fn set(&mut self, conditions: LinkConditions) {
        self.conditions = conditions;
        self.sending_until = Duration::ZERO;
    }

    /// Decides about a packet of `size` bytes that is put on the link at `now`.
    pub(super) fn send(&mut self, now: Duration, size: usize) -> Fate {
        let Some(sent) = self.pass_queue(now, size) else {
            return Fate::Dropped;
        };
        if self.happens(self.conditions.loss) {
            return Fate::Lost;
        }
        let overtakes = self.happens(self.conditions.reordering);
        if overtakes && sent < self.last_arrival {
            return Fate::Overtakes(sent);
        }
        let arrival = (sent + self.time_under_way()).max(self.last_arrival);
        self.last_arrival = arrival;
        Fate::Arrives(arrival)
    }

    /// When the last bit of the packet has left; `None` when there is no room for it.
    fn pass_queue(&mut self, now: Duration, size: usize) -> Option<Duration> {
        let Some(rate) = self.conditions.rate else {
            return Some(now);
        };
        let begin = self.sending_until.max(now);
        let room_until = now + time_to_send(self.conditions.queue, rate);
        // A packet that waits for nobody needs no queue, however short that is.
        if begin > now && begin + time_to_send(size, rate) > room_until {
            return None;
        }
        self.sending_until = begin + time_to_send(size, rate);
        Some(self.sending_until)
    }

    fn happens(&mut self, share: f64) -> bool {
        // Chance is asked only where there is some, so that an added condition leaves the
        // others' course as it was.
        share > 0.0 && self.random.fraction() < share
    }

    fn time_under_way(&mut self) -> Duration {
        let LinkConditions { delay, jitter, .. } = self.conditions;
        if jitter.is_zero() {
            return delay;
        }
        let shortest = delay.saturating_sub(jitter);
        shortest + (delay + jitter - shortest).mul_f64(self.random.fraction())
    }
}

fn time_to_send(bytes: usize, bits_per_second: u64) -> Duration {
    let bits = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8);
    let nanoseconds = u128::from(bits) * 1_000_000_000 / u128::from(bits_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fates(conditions: LinkConditions, packets: u32, every: Duration) -> Vec<Fate> {
        let mut model = LinkModel::new(conditions, 42);
        (0..packets)
            .map(|number| model.send(every * number, 1000))
            .collect()
    }

    fn count(fates: &[Fate], wanted: impl Fn(&Fate) -> bool) -> usize {
        fates.iter().filter(|fate| wanted(fate)).count()
    }

    #[test]
    fn a_link_without_conditions_delivers_at_once() {
        assert_eq!(
            fates(LinkConditions::default(), 2, MS),
            [Fate::Arrives(Duration::ZERO), Fate::Arrives(MS)]
        );
    }

    #[test]
    fn a_packet_arrives_a_delay_later() {
        let conditions = LinkConditions::delay(30 * MS);
        assert_eq!(
            fates(conditions, 2, MS),
            [Fate::Arrives(30 * MS), Fate::Arrives(31 * MS)]
        );
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_keeps_the_order() {
        let conditions = LinkConditions::delay(30 * MS).jitter(5 * MS);
        let mut last = Duration::ZERO;
        let mut delays = Vec::new();
        for (number, fate) in (0..).zip(fates(conditions, 1000, 20 * MS)) {
            let Fate::Arrives(at) = fate else {
                panic!("{fate:?}")
            };
            assert!(at >= last);
            last = at;
            delays.push(at - 20 * MS * number);
        }
        assert!(
            delays
                .iter()
                .all(|delay| (25 * MS..=35 * MS).contains(delay))
        );
        assert!(delays.iter().any(|delay| *delay < 26 * MS));
        assert!(delays.iter().any(|delay| *delay > 34 * MS));
    }

    #[test]
    fn the_share_that_is_asked_for_gets_lost_and_the_same_packets_on_every_run() {
        let conditions = LinkConditions::default().loss(0.02);
        let first = fates(conditions, 10_000, MS);
        let lost = count(&first, |fate| *fate == Fate::Lost);
        assert!((150..250).contains(&lost), "{lost}");
        assert_eq!(first, fates(conditions, 10_000, MS));
    }

    #[test]
    fn a_share_of_packets_overtakes_those_under_way() {
        let conditions = LinkConditions::delay(30 * MS).reordering(0.1);
        let all = fates(conditions, 10_000, MS);
        let overtook = count(&all, |fate| matches!(fate, Fate::Overtakes(_)));
        assert!((900..1100).contains(&overtook), "{overtook}");
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops_the_last() {
        // 1000 bytes take a millisecond; three of them are all that fits.
        let conditions = LinkConditions::default().rate(8_000_000, 3000);
        assert_eq!(
            fates(conditions, 5, Duration::ZERO),
            [
                Fate::Arrives(MS),
                Fate::Arrives(2 * MS),
                Fate::Arrives(3 * MS),
                Fate::Dropped,
                Fate::Dropped
            ]
        );
        let slower = fates(conditions, 5, MS);
        assert_eq!(count(&slower, |fate| *fate == Fate::Dropped), 0);
    }

    #[test]
    fn a_packet_larger_than_the_queue_passes_an_idle_link() {
        let conditions = LinkConditions::default().rate(8_000_000, 10);
        assert_eq!(
            fates(conditions, 2, Duration::ZERO),
            [Fate::Arrives(MS), Fate::Dropped]
        );
    }

    #[test]
    fn packets_under_a_new_condition_do_not_overtake_older_ones() {
        let mut model = LinkModel::new(LinkConditions::delay(100 * MS), 1);
        assert_eq!(model.send(Duration::ZERO, 1), Fate::Arrives(100 * MS));
        model.set(LinkConditions::delay(MS));
        assert_eq!(model.send(MS, 1), Fate::Arrives(100 * MS));
        assert_eq!(model.send(200 * MS, 1), Fate::Arrives(201 * MS));
    }
}

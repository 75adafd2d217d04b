//! The datagrams of one connection: out at once, or after a moment in a queue, and never
//! dropped without being counted; and what of those that the peer has sent was lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use edgemesh_wire::{Datagram, MAX_DATAGRAM_OVERHEAD, Tally};
use futures_util::FutureExt;
use iroh::endpoint::{Connection, SendDatagramError};
use tokio::sync::Notify;

use crate::arrivals::{Arrivals, TooManyTallies};
use crate::counters::{Counters, DatagramDropped};
use crate::stretches::Stretches;

/// Bytes of datagrams that may wait for the peer besides those in QUIC's own buffer.
const MOST_WAITING: usize = 4 << 20;
/// What a waiting datagram costs besides its bytes.
const EACH: usize = 64;

/// Why a datagram was not sent as a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// It does not fit into one; a stream can carry it.
    TooLarge,
    /// Too many are waiting, or the connection is over; it is dropped, and counted.
    Dropped,
}

/// What carries datagrams as packets.
pub(crate) trait Packets {
    /// Bytes of the largest one that can go now; 0 when none can.
    fn most(&self) -> usize;

    /// Bytes that it could take now before any has left.
    fn room(&self) -> usize;

    /// Takes one as soon as there is room, and drops none for it.
    fn send(&self, datagram: Bytes) -> impl Future<Output = Result<(), NotTaken>> + Send;
}

/// Why a datagram could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// It does not fit into a packet any more.
    TooLarge,
    /// The connection is over.
    Over,
}

impl Packets for Connection {
    fn most(&self) -> usize {
        self.max_datagram_size().unwrap_or(0)
    }

    fn room(&self) -> usize {
        self.datagram_send_buffer_space()
    }

    // Not `send_datagram`: it makes room by dropping, and the room that is told before
    // (`datagram_send_buffer_space`) leaves out what noq 1.4 reckons for each datagram besides
    // its bytes.
    async fn send(&self, datagram: Bytes) -> Result<(), NotTaken> {
        self.send_datagram_wait(datagram)
            .await
            .map_err(|error| match error {
                SendDatagramError::TooLarge
                | SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled => NotTaken::TooLarge,
                SendDatagramError::ConnectionLost(_) => NotTaken::Over,
            })
    }
}

/// The datagrams of a connection.
#[derive(Debug)]
pub(crate) struct DatagramTraffic {
    counters: Arc<Counters>,
    /// Room when nothing is on its way.
    room: usize,
    arrivals: Mutex<Arrivals>,
    out: Mutex<Out>,
    more_waiting: Notify,
}

#[derive(Debug, Default)]
struct Out {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    stretches: Stretches,
    /// The connection is over; nothing goes any more.
    over: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    flow: u64,
    payload: Bytes,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.payload.len() + EACH
    }
}

impl Out {
    /// A datagram as it is given to the transport now.
    fn take_in_hand(&mut self, flow: u64, payload: &[u8]) -> Bytes {
        let datagram = Datagram::encode(flow, self.stretches.is_odd(), payload);
        self.stretches.take_in_hand(datagram.len());
        datagram
    }
}

impl DatagramTraffic {
    /// That of `packets`, by which nothing has gone yet.
    pub(crate) fn new(packets: &impl Packets, counters: Arc<Counters>) -> Self {
        Self {
            counters,
            room: packets.room(),
            arrivals: Mutex::default(),
            out: Mutex::default(),
            more_waiting: Notify::new(),
        }
    }

    /// Sends a datagram of `flow` in a packet; keeps it for a moment when packets cannot go as
    /// fast.
    pub(crate) fn send(
        &self,
        packets: &impl Packets,
        flow: u64,
        payload: &[u8],
    ) -> Result<(), NotSent> {
        if payload.len() + MAX_DATAGRAM_OVERHEAD > packets.most() {
            return Err(NotSent::TooLarge);
        }
        // Held to the end, so that none overtakes another.
        let mut out = self.out();
        if out.over {
            return Err(self.dropped(DatagramDropped::ConnectionEnded));
        }
        if out.waiting.is_empty() {
            let datagram = out.take_in_hand(flow, payload);
            let sent = packets.send(datagram).now_or_never();
            if let Some(Ok(())) = sent {
                out.stretches.was_given();
                self.counters.datagram_went();
                return Ok(());
            }
            out.stretches.was_not_given();
            match sent {
                Some(Err(NotTaken::TooLarge)) => return Err(NotSent::TooLarge),
                Some(Err(NotTaken::Over)) => {
                    return Err(self.dropped(DatagramDropped::ConnectionEnded));
                }
                Some(Ok(())) | None => {}
            }
        }
        let waiting = Waiting {
            flow,
            payload: Bytes::copy_from_slice(payload),
        };
        if out.bytes + waiting.cost() > MOST_WAITING {
            return Err(self.dropped(DatagramDropped::QueueFull));
        }
        out.bytes += waiting.cost();
        out.waiting.push_back(waiting);
        drop(out);
        self.more_waiting.notify_one();
        Ok(())
    }

    /// Sends what waits as soon as there is room, as long as it is polled.
    pub(crate) async fn send_waiting(&self, packets: &impl Packets) {
        loop {
            self.more_waiting.notified().await;
            // Taken out after it was sent: meanwhile others must queue up behind it.
            while let Some(datagram) = self.first() {
                let sent = packets.send(datagram).await;
                if sent == Err(NotTaken::Over) {
                    // What waits is counted at the end, which whoever polls this learns of.
                    std::future::pending::<()>().await;
                }
                self.first_is_done(sent.is_ok());
            }
        }
    }

    /// What waits first; it stays there.
    fn first(&self) -> Option<Bytes> {
        let mut out = self.out();
        let Waiting { flow, payload } = out.waiting.front().cloned()?;
        Some(out.take_in_hand(flow, &payload))
    }

    fn first_is_done(&self, was_taken: bool) {
        let mut out = self.out();
        if let Some(first) = out.waiting.pop_front() {
            out.bytes -= first.cost();
        }
        if was_taken {
            out.stretches.was_given();
            self.counters.datagram_went();
        } else {
            out.stretches.was_not_given();
            self.counters.datagram_dropped(DatagramDropped::PathShrank);
        }
    }

    /// What the peer is to be told of the datagrams that were sent.
    pub(crate) fn tally(&self, packets: &impl Packets, now: Instant) -> Option<Tally> {
        let mut out = self.out();
        let buffered = self.room.saturating_sub(packets.room());
        out.stretches.tally(now, buffered)
    }

    /// A datagram of the peer has come.
    pub(crate) fn came(&self, datagram: &Datagram) {
        self.counters.datagram_came();
        self.arrivals().came(datagram.is_odd);
    }

    /// The peer has told how many it had sent.
    pub(crate) fn told(&self, tally: Tally, now: Instant) -> Result<(), TooManyTallies> {
        self.arrivals().told(tally, now)
    }

    /// Counts what should have come by now.
    pub(crate) fn settle(&self, now: Instant) {
        let lost = self.arrivals().lost(now);
        self.count(DatagramDropped::Lost, lost);
    }

    /// The connection is over: what waits is dropped, and whatever is to be sent. Nothing was
    /// heard of the peer since `heard`.
    pub(crate) fn end_sending(&self, heard: Instant) {
        let mut out = self.out();
        out.over = true;
        out.bytes = 0;
        let waiting = std::mem::take(&mut out.waiting).len() as u64;
        let unsettled = out.stretches.end(heard);
        self.count(DatagramDropped::ConnectionEnded, waiting);
        self.count(DatagramDropped::Unsettled, unsettled.into());
    }

    /// Nothing comes any more.
    pub(crate) fn end_receiving(&self) {
        let lost = self.arrivals().end();
        self.count(DatagramDropped::Lost, lost);
    }

    fn count(&self, reason: DatagramDropped, datagrams: u64) {
        self.counters.datagrams_were_dropped(reason, datagrams);
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        let arrivals = self.arrivals.lock();
        arrivals.unwrap_or_else(PoisonError::into_inner)
    }

    fn dropped(&self, reason: DatagramDropped) -> NotSent {
        self.counters.datagram_dropped(reason);
        NotSent::Dropped
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// Room for some datagrams, until somebody takes them away.
    #[derive(Debug)]
    struct Road {
        room: usize,
        on_it: Mutex<Vec<Bytes>>,
        most: usize,
        refuses: Option<NotTaken>,
    }

    impl Road {
        fn with_room(room: usize) -> Self {
            Self {
                room,
                on_it: Mutex::default(),
                most: 1000,
                refuses: None,
            }
        }

        fn clear(&self) -> Vec<Bytes> {
            std::mem::take(&mut *self.on_it.lock().unwrap())
        }
    }

    impl Packets for Road {
        fn most(&self) -> usize {
            self.most
        }

        fn room(&self) -> usize {
            let bytes = |datagrams: &[Bytes]| datagrams.iter().map(Bytes::len).sum::<usize>();
            1000 - bytes(&self.on_it.lock().unwrap())
        }

        async fn send(&self, datagram: Bytes) -> Result<(), NotTaken> {
            if let Some(refusal) = self.refuses {
                return Err(refusal);
            }
            poll_fn(|context| {
                let mut on_it = self.on_it.lock().unwrap();
                if on_it.len() < self.room {
                    on_it.push(datagram.clone());
                    return Poll::Ready(Ok(()));
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await
        }
    }

    fn traffic() -> DatagramTraffic {
        DatagramTraffic::new(&Road::with_room(0), Arc::default())
    }

    fn counted(traffic: &DatagramTraffic) -> [u64; DatagramDropped::ALL.len()] {
        DatagramDropped::ALL.map(|reason| traffic.counters.datagrams_dropped(reason))
    }

    fn only(reason: DatagramDropped, count: u64) -> [u64; DatagramDropped::ALL.len()] {
        DatagramDropped::ALL.map(|other| if other == reason { count } else { 0 })
    }

    #[tokio::test]
    async fn what_finds_no_room_waits_and_goes_in_order() {
        let (traffic, road) = (traffic(), Road::with_room(2));
        for n in 0..5_u8 {
            traffic.send(&road, 4, &[n]).unwrap();
        }
        let mut came = road.clear();
        let sending = async {
            while came.len() < 5 {
                tokio::task::yield_now().await;
                came.extend(road.clear());
            }
        };
        tokio::select! {
            () = traffic.send_waiting(&road) => {}
            () = sending => {}
        }
        let expected: Vec<Bytes> = (0..5_u8)
            .map(|n| Datagram::encode(4, false, &[n]))
            .collect();
        assert_eq!(came, expected);
        assert_eq!(counted(&traffic).iter().sum::<u64>(), 0);
    }

    #[test]
    fn senders_at_once_lose_nothing_of_each_other() {
        let (traffic, road) = (traffic(), Road::with_room(100));
        std::thread::scope(|scope| {
            for flow in 0..4 {
                let (traffic, road) = (&traffic, &road);
                scope.spawn(move || (0..100).try_for_each(|_| traffic.send(road, flow, b"x")));
            }
        });
        assert_eq!(road.clear().len(), 100);
        assert_eq!(traffic.out().waiting.len(), 300);
        assert_eq!(counted(&traffic).iter().sum::<u64>(), 0);
    }

    #[test]
    fn what_the_path_has_become_too_narrow_for_is_left_to_the_stream() {
        let (traffic, mut road) = (traffic(), Road::with_room(2));
        assert_eq!(
            traffic.send(&road, 4, &[0; 993]),
            Err(NotSent::TooLarge),
            "by what is told"
        );
        road.refuses = Some(NotTaken::TooLarge);
        assert_eq!(
            traffic.send(&road, 4, b"x"),
            Err(NotSent::TooLarge),
            "by what is found"
        );
        assert_eq!(counted(&traffic).iter().sum::<u64>(), 0);
    }

    #[test]
    fn what_waits_longer_than_the_queue_is_counted() {
        let (traffic, road) = (traffic(), Road::with_room(0));
        let all = MOST_WAITING / (900 + EACH) + 7;
        let refused = (0..all)
            .filter(|_| traffic.send(&road, 4, &[0; 900]).is_err())
            .count();
        assert_eq!(refused, 7);
        assert_eq!(counted(&traffic), only(DatagramDropped::QueueFull, 7));
    }

    #[tokio::test]
    async fn what_waits_when_the_connection_ends_is_counted_and_what_comes_later() {
        let (traffic, mut road) = (traffic(), Road::with_room(0));
        traffic.send(&road, 4, b"one").unwrap();
        traffic.send(&road, 4, b"two").unwrap();
        road.refuses = Some(NotTaken::Over);
        assert_eq!(traffic.send_waiting(&road).now_or_never(), None);
        traffic.end_sending(Instant::now());
        assert_eq!(traffic.send(&road, 4, b"three"), Err(NotSent::Dropped));
        assert_eq!(counted(&traffic), only(DatagramDropped::ConnectionEnded, 3));
    }

    #[test]
    fn what_is_told_is_what_has_left_and_what_is_not_told_is_counted_at_the_end() {
        let (traffic, road, began) = (traffic(), Road::with_room(3), Instant::now());
        for _ in 0..5 {
            traffic.send(&road, 4, b"x").unwrap();
        }
        assert_eq!(traffic.tally(&road, began), None, "all are on the road");
        road.clear();
        assert_eq!(traffic.tally(&road, began), Some(Tally { sent: 3 }));
        traffic.end_sending(began);
        let [of_these, in_all] = [DatagramDropped::Unsettled, DatagramDropped::ConnectionEnded]
            .map(|reason| traffic.counters.datagrams_dropped(reason));
        assert_eq!((of_these, in_all), (3, 2));
    }
}

//! The datagrams of one connection on their way out: at once, or after a moment in a queue,
//! and never dropped without being counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use edgemesh_wire::{Datagram, MAX_DATAGRAM_OVERHEAD};
use futures_util::FutureExt;
use iroh::endpoint::{Connection, SendDatagramError};
use tokio::sync::Notify;

use crate::counters::{Counters, DatagramDropped};

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

/// The datagrams that a connection sends.
#[derive(Debug)]
pub(crate) struct DatagramTraffic {
    counters: Arc<Counters>,
    out: Mutex<Out>,
    more_waiting: Notify,
}

#[derive(Debug, Default)]
struct Out {
    waiting: VecDeque<Waiting>,
    bytes: usize,
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

impl DatagramTraffic {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
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
            let datagram = Datagram::encode(flow, payload);
            match packets.send(datagram).now_or_never() {
                Some(Ok(())) => {
                    self.counters.datagram_went();
                    return Ok(());
                }
                Some(Err(NotTaken::TooLarge)) => return Err(NotSent::TooLarge),
                Some(Err(NotTaken::Over)) => {
                    return Err(self.dropped(DatagramDropped::ConnectionEnded));
                }
                None => {}
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
            while let Some(next) = self.first() {
                let datagram = Datagram::encode(next.flow, &next.payload);
                match packets.send(datagram).await {
                    Ok(()) => self.counters.datagram_went(),
                    Err(NotTaken::TooLarge) => {
                        self.counters.datagram_dropped(DatagramDropped::PathShrank);
                    }
                    Err(NotTaken::Over) => return self.end(),
                }
                let mut out = self.out();
                out.bytes -= next.cost();
                out.waiting.pop_front();
            }
        }
    }

    /// The connection is over: what waits is dropped, and whatever comes.
    pub(crate) fn end(&self) {
        let mut out = self.out();
        out.over = true;
        let waiting = std::mem::take(&mut out.waiting).len();
        out.bytes = 0;
        self.counters
            .datagrams_were_dropped(DatagramDropped::ConnectionEnded, waiting);
    }

    fn first(&self) -> Option<Waiting> {
        self.out().waiting.front().cloned()
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
    use std::future::{pending, poll_fn};
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
        DatagramTraffic::new(Arc::default())
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
        let expected: Vec<Bytes> = (0..5_u8).map(|n| Datagram::encode(4, &[n])).collect();
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
        traffic.end();
        assert_eq!(
            counted(&traffic),
            only(DatagramDropped::ConnectionEnded, 300)
        );
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
        tokio::select! {
            () = traffic.send_waiting(&road) => {}
            () = pending() => {}
        }
        assert_eq!(traffic.send(&road, 4, b"three"), Err(NotSent::Dropped));
        traffic.end();
        assert_eq!(counted(&traffic), only(DatagramDropped::ConnectionEnded, 3));
    }
}

//! Who serves a connection: the thread that accepted it, another one that has less to do, or
//! the runtime that the tunnel lives in.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::addrs::{ClientAddr, ListenAddr};
use crate::portal::ActivePortal;

/// By how many connections a worker may be ahead of the idlest one, besides half of what that
/// has: short connections come and go, and handing one over costs more than such a difference
/// is worth. Only who has nothing to do at all is always given something.
const SLACK: usize = 4;

/// A connection on its way to who will serve it, watched by no runtime yet. It holds its place in
/// the room, so that no more of them wait anywhere than the room has places.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) id: u64,
    pub(crate) stream: TcpStream,
    pub(crate) client: ClientAddr,
    pub(crate) listener: ListenAddr,
    /// Where the client wants to go, once that is known.
    pub(crate) portal: Option<Arc<ActivePortal>>,
    pub(crate) room: OwnedSemaphorePermit,
}

/// All workers, as each of them sees the others.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Vec<Desk>,
    /// Of the runtime that the tunnel lives in.
    tunnel: UnboundedSender<Arrival>,
}

#[derive(Debug)]
struct Desk {
    load: Arc<AtomicUsize>,
    inbox: UnboundedSender<Arrival>,
}

/// A worker's part of the crew.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Its number; none for the one beside the tunnel.
    pub(crate) number: Option<usize>,
    pub(crate) load: Arc<AtomicUsize>,
    pub(crate) inbox: UnboundedReceiver<Arrival>,
}

/// Counts as one connection of a worker while it lives.
#[derive(Debug)]
pub(crate) struct Loaded(Arc<AtomicUsize>);

impl Crew {
    /// A crew of `many` workers, with the seats for them, and one more seat beside the tunnel.
    pub(crate) fn new(many: usize) -> (Self, Vec<Seat>, Seat) {
        let (workers, seats) = (0..many)
            .map(|number| {
                let (inbox, seat) = seat(Some(number));
                let load = Arc::clone(&seat.load);
                (Desk { load, inbox }, seat)
            })
            .unzip();
        let (tunnel, beside) = seat(None);
        (Self { workers, tunnel }, seats, beside)
    }

    /// The worker that should have the next connection that `me` accepted, unless `me` should.
    pub(crate) fn idler_than(&self, me: usize) -> Option<usize> {
        let loads = self.workers.iter().map(Desk::load);
        idler_than(me, loads)
    }

    /// Gives `arrival` to the worker `number`; back when that has ended.
    pub(crate) fn hand_over(&self, number: usize, arrival: Arrival) -> Result<(), Arrival> {
        match self.workers.get(number) {
            Some(desk) => desk.inbox.send(arrival).map_err(|ended| ended.0),
            None => Err(arrival),
        }
    }

    /// Gives `arrival` to who serves beside the tunnel; back when that has ended.
    pub(crate) fn hand_to_tunnel(&self, arrival: Arrival) -> Result<(), Arrival> {
        self.tunnel.send(arrival).map_err(|ended| ended.0)
    }
}

fn seat(number: Option<usize>) -> (UnboundedSender<Arrival>, Seat) {
    let (inbox, receiver) = unbounded_channel();
    let seat = Seat {
        number,
        load: Arc::default(),
        inbox: receiver,
    };
    (inbox, seat)
}

impl Desk {
    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

impl Seat {
    /// One connection more, until the value is dropped.
    pub(crate) fn loaded(&self) -> Loaded {
        self.load.fetch_add(1, Ordering::Relaxed);
        Loaded(Arc::clone(&self.load))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn idler_than(me: usize, loads: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    let mine = loads.clone().nth(me)?;
    let (idlest, least) = loads.enumerate().min_by_key(|(_, load)| *load)?;
    let too_many = if least == 0 {
        0
    } else {
        least + SLACK + least / 2
    };
    (mine > too_many).then_some(idlest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_has_little_more_than_the_others_keeps_it() {
        for (loads, me, whose) in [
            (vec![0], 0, None),
            (vec![9], 0, None),
            (vec![0, 0], 0, None),
            (vec![1, 0], 0, Some(1)),
            (vec![0, 1], 1, Some(0)),
            (vec![5, 1], 0, None),
            (vec![6, 1], 0, Some(1)),
            (vec![140, 100], 0, None),
            (vec![155, 100, 101], 0, Some(1)),
            (vec![1, 0], 5, None),
        ] {
            assert_eq!(idler_than(me, loads.iter().copied()), whose, "{loads:?}");
        }
    }

    proptest! {
        #[test]
        fn however_connections_arrive_no_worker_has_many_more_than_another(
            arrivals in proptest::collection::vec(0_usize..4, 0..500),
        ) {
            let mut loads = [0_usize; 4];
            for me in arrivals {
                let whose = idler_than(me, loads.iter().copied()).unwrap_or(me);
                loads[whose] += 1;
            }
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            prop_assert!(*most <= least + SLACK + least / 2 + 1, "{loads:?}");
        }
    }

    #[test]
    fn a_worker_counts_what_it_serves() {
        let (crew, seats, _beside) = Crew::new(2);
        let held = seats[0].loaded();
        assert_eq!(crew.idler_than(0), Some(1));
        drop(held);
        assert_eq!(crew.idler_than(0), None);
    }
}

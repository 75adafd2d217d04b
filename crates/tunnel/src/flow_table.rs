//! The UDP flows of one connection: whose datagram is it?

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgemesh_wire::Datagram;

/// Bytes of datagrams kept that came before their flow was known: they may overtake the
/// stream that opens it, and a flow begins with its whole first burst while its endpoint is
/// being asked for.
const MOST_EARLY: usize = 512 * 1024;
/// What a kept datagram costs besides its bytes.
const EACH: usize = 128;

/// How long they are kept: longer than a flow that was opened takes to be known, when the
/// packet that opens it is lost a few times.
const EARLY_FOR: Duration = Duration::from_secs(10);

/// What takes a flow's datagrams; must not block.
type Sink = Arc<dyn Fn(Bytes) + Send + Sync>;

/// The flows of a connection by the number of their stream.
#[derive(Default)]
pub(crate) struct FlowTable(Mutex<Table>);

#[derive(Default)]
struct Table {
    flows: BTreeMap<u64, Sink>,
    /// Oldest first.
    early: VecDeque<Early>,
    early_bytes: usize,
}

struct Early {
    came_at: Instant,
    datagram: Datagram,
}

/// Keeps a flow in its table.
pub(crate) struct Registered {
    table: Arc<FlowTable>,
    flow: u64,
}

impl FlowTable {
    /// From now on datagrams of `flow` go to `sink`; those that were early at once.
    pub(crate) fn register(
        self: &Arc<Self>,
        flow: u64,
        sink: impl Fn(Bytes) + Send + Sync + 'static,
    ) -> Registered {
        let sink: Sink = Arc::new(sink);
        // Those that come while early ones are handed over are early, too: until there are none.
        while let Some(early) = self.take_early_or_insert(flow, &sink) {
            early
                .into_iter()
                .for_each(|early| sink(early.datagram.payload));
        }
        Registered {
            table: Arc::clone(self),
            flow,
        }
    }

    /// Takes the early ones of `flow`; none when there are none, and then its datagrams go to
    /// `sink` from now on, so that none is in between.
    fn take_early_or_insert(&self, flow: u64, sink: &Sink) -> Option<Vec<Early>> {
        let mut table = self.lock();
        let early = table.take_early(flow);
        if early.is_empty() {
            table.flows.insert(flow, Arc::clone(sink));
            return None;
        }
        Some(early)
    }

    /// Gives a datagram to its flow, or keeps it for a moment. Returns how many had to be
    /// dropped for that, the oldest first.
    pub(crate) fn deliver(&self, datagram: Datagram, now: Instant) -> u64 {
        let sink = {
            let mut table = self.lock();
            let Some(sink) = table.flows.get(&datagram.flow) else {
                return table.keep(Early {
                    came_at: now,
                    datagram,
                });
            };
            Arc::clone(sink)
        };
        sink(datagram.payload);
        0
    }

    /// Drops those whose flow was not opened for too long, or has ended. Returns how many.
    pub(crate) fn expire(&self, now: Instant) -> u64 {
        self.lock()
            .drop_while(|early, _| now.duration_since(early.came_at) >= EARLY_FOR)
    }

    /// No flow will be opened any more. Returns how many datagrams were without one.
    pub(crate) fn end(&self) -> u64 {
        self.lock().drop_while(|_, _| true)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().flows.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn take_early(&mut self, flow: u64) -> Vec<Early> {
        let early = std::mem::take(&mut self.early);
        let (own, others): (Vec<_>, Vec<_>) = early
            .into_iter()
            .partition(|early| early.datagram.flow == flow);
        self.early_bytes = others.iter().map(cost).sum();
        self.early = others.into();
        own
    }

    fn keep(&mut self, early: Early) -> u64 {
        self.early_bytes += cost(&early);
        self.early.push_back(early);
        self.drop_while(|_, bytes| bytes > MOST_EARLY)
    }

    /// Drops the oldest ones as long as `goes`, given it and the bytes of all, says so. Returns
    /// how many.
    fn drop_while(&mut self, goes: impl Fn(&Early, usize) -> bool) -> u64 {
        let mut dropped = 0;
        while let Some(oldest) = self
            .early
            .pop_front_if(|oldest| goes(oldest, self.early_bytes))
        {
            self.early_bytes -= cost(&oldest);
            dropped += 1;
        }
        dropped
    }
}

fn cost(early: &Early) -> usize {
    early.datagram.payload.len() + EACH
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.lock().flows.remove(&self.flow);
    }
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowTable({} flows)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(flow: u64, payload: &'static str) -> Datagram {
        Datagram {
            flow,
            is_odd: false,
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    type Seen = Arc<Mutex<Vec<Bytes>>>;

    fn sink(seen: &Seen) -> impl Fn(Bytes) + Send + Sync + 'static {
        let seen = Arc::clone(seen);
        move |bytes| seen.lock().unwrap().push(bytes)
    }

    #[test]
    fn a_datagram_goes_to_its_own_flow_only() {
        let table = Arc::new(FlowTable::default());
        let (one, two) = (Seen::default(), Seen::default());
        let _one = table.register(4, sink(&one));
        let _two = table.register(8, sink(&two));
        table.deliver(datagram(8, "for two"), now());
        assert!(one.lock().unwrap().is_empty());
        assert_eq!(*two.lock().unwrap(), ["for two"]);
    }

    #[test]
    fn datagrams_that_overtook_their_flow_are_not_lost() {
        let table = Arc::new(FlowTable::default());
        for (flow, text) in [(4, "first"), (8, "another's"), (4, "second")] {
            assert_eq!(table.deliver(datagram(flow, text), now()), 0);
        }
        let seen = Seen::default();
        let _flow = table.register(4, sink(&seen));
        table.deliver(datagram(4, "third"), now());
        assert_eq!(*seen.lock().unwrap(), ["first", "second", "third"]);
    }

    #[test]
    fn a_datagram_that_comes_while_early_ones_are_handed_over_is_not_lost() {
        let table = Arc::new(FlowTable::default());
        table.deliver(datagram(4, "first"), now());
        let seen = Seen::default();
        let (keep, meanwhile) = (sink(&seen), Arc::clone(&table));
        let _flow = table.register(4, move |bytes| {
            if bytes == "first" {
                meanwhile.deliver(datagram(4, "second"), now());
            }
            keep(bytes);
        });
        assert_eq!(*seen.lock().unwrap(), ["first", "second"]);
    }

    #[test]
    fn datagrams_of_no_flow_are_kept_in_bounds() {
        let table = Arc::new(FlowTable::default());
        let most = MOST_EARLY / (1 + EACH);
        for _ in 0..most {
            assert_eq!(table.deliver(datagram(4, "x"), now()), 0);
        }
        let large: &'static str = "large ".repeat(100).leak();
        assert!(
            table.deliver(datagram(8, large), now()) > 1,
            "some had to go"
        );
        assert!(table.lock().early_bytes <= MOST_EARLY);
        table.lock().take_early(4);
        assert_eq!(table.lock().early_bytes, large.len() + EACH);
    }

    #[test]
    fn what_nobody_wants_is_kept_for_some_seconds_only() {
        let (table, began) = (Arc::new(FlowTable::default()), Instant::now());
        table.deliver(datagram(4, "old"), began);
        table.deliver(datagram(8, "younger"), began + EARLY_FOR / 2);
        table.deliver(datagram(4, "youngest"), began + EARLY_FOR);
        assert_eq!(table.expire(began + EARLY_FOR / 2), 0);
        assert_eq!(table.expire(began + EARLY_FOR), 1);
        assert_eq!(table.expire(began + EARLY_FOR), 0);
        assert_eq!(table.end(), 2);
        assert_eq!(table.lock().early_bytes, 0);
    }

    #[test]
    fn a_flow_that_ended_gets_nothing_more() {
        let table = Arc::new(FlowTable::default());
        let seen = Seen::default();
        drop(table.register(4, sink(&seen)));
        table.deliver(datagram(4, "late"), now());
        assert!(seen.lock().unwrap().is_empty());
        assert_eq!(table.len(), 0);
    }
}

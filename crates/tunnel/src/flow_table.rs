//! The UDP flows of one connection: whose datagram is it?

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use edgemesh_wire::Datagram;

/// Bytes of datagrams kept that came before their flow was known: they may overtake the
/// stream that opens it, and a flow begins with its whole first burst while its endpoint is
/// being asked for.
const MOST_EARLY: usize = 512 * 1024;
/// What a kept datagram costs besides its bytes.
const EACH: usize = 128;

/// What takes a flow's datagrams; must not block.
type Sink = Arc<dyn Fn(Bytes) + Send + Sync>;

/// The flows of a connection by the number of their stream.
#[derive(Default)]
pub(crate) struct FlowTable(Mutex<Table>);

#[derive(Default)]
struct Table {
    flows: BTreeMap<u64, Sink>,
    early: VecDeque<Datagram>,
    early_bytes: usize,
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
                .for_each(|datagram| sink(datagram.payload));
        }
        Registered {
            table: Arc::clone(self),
            flow,
        }
    }

    /// Takes the early ones of `flow`; none when there are none, and then its datagrams go to
    /// `sink` from now on, so that none is in between.
    fn take_early_or_insert(&self, flow: u64, sink: &Sink) -> Option<Vec<Datagram>> {
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
    pub(crate) fn deliver(&self, datagram: Datagram) -> usize {
        let sink = {
            let mut table = self.lock();
            let Some(sink) = table.flows.get(&datagram.flow) else {
                return table.keep(datagram);
            };
            Arc::clone(sink)
        };
        sink(datagram.payload);
        0
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().flows.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn take_early(&mut self, flow: u64) -> Vec<Datagram> {
        let early = std::mem::take(&mut self.early);
        let (own, others): (Vec<_>, Vec<_>) =
            early.into_iter().partition(|early| early.flow == flow);
        self.early_bytes = others.iter().map(cost).sum();
        self.early = others.into();
        own
    }

    fn keep(&mut self, datagram: Datagram) -> usize {
        self.early_bytes += cost(&datagram);
        self.early.push_back(datagram);
        let mut dropped = 0;
        while self.early_bytes > MOST_EARLY
            && let Some(oldest) = self.early.pop_front()
        {
            self.early_bytes -= cost(&oldest);
            dropped += 1;
        }
        dropped
    }
}

fn cost(datagram: &Datagram) -> usize {
    datagram.payload.len() + EACH
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
            payload: Bytes::from_static(payload.as_bytes()),
        }
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
        table.deliver(datagram(8, "for two"));
        assert!(one.lock().unwrap().is_empty());
        assert_eq!(*two.lock().unwrap(), ["for two"]);
    }

    #[test]
    fn datagrams_that_overtook_their_flow_are_not_lost() {
        let table = Arc::new(FlowTable::default());
        for (flow, text) in [(4, "first"), (8, "another's"), (4, "second")] {
            assert_eq!(table.deliver(datagram(flow, text)), 0);
        }
        let seen = Seen::default();
        let _flow = table.register(4, sink(&seen));
        table.deliver(datagram(4, "third"));
        assert_eq!(*seen.lock().unwrap(), ["first", "second", "third"]);
    }

    #[test]
    fn a_datagram_that_comes_while_early_ones_are_handed_over_is_not_lost() {
        let table = Arc::new(FlowTable::default());
        table.deliver(datagram(4, "first"));
        let seen = Seen::default();
        let (keep, meanwhile) = (sink(&seen), Arc::clone(&table));
        let _flow = table.register(4, move |bytes| {
            if bytes == "first" {
                meanwhile.deliver(datagram(4, "second"));
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
            assert_eq!(table.deliver(datagram(4, "x")), 0);
        }
        let large: &'static str = "large ".repeat(100).leak();
        assert!(table.deliver(datagram(8, large)) > 1, "some had to go");
        assert!(table.lock().early_bytes <= MOST_EARLY);
        table.lock().take_early(4);
        assert_eq!(table.lock().early_bytes, large.len() + EACH);
    }

    #[test]
    fn a_flow_that_ended_gets_nothing_more() {
        let table = Arc::new(FlowTable::default());
        let seen = Seen::default();
        drop(table.register(4, sink(&seen)));
        table.deliver(datagram(4, "late"));
        assert!(seen.lock().unwrap().is_empty());
        assert_eq!(table.len(), 0);
    }
}

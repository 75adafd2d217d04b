//! Keeps the number of UDP flows below a limit: the least recently used one goes out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::descriptors::Descriptors;
use crate::udp_flow::{Flow, Place};

/// All flows of all portals.
#[derive(Debug)]
pub(crate) struct FlowCap {
    most: usize,
    /// As many have descriptors of their own.
    apart: usize,
    /// Where further ones have theirs from.
    descriptors: Descriptors,
    flows: Mutex<Flows>,
}

#[derive(Debug, Default)]
struct Flows {
    /// By when each was last used as far as we know here, which is too early for most:
    /// keeping it exact would cost every datagram a global lock.
    by_use: BTreeMap<Place, Arc<Flow>>,
    serial: u64,
    /// One for each flow that has none of its own.
    borrowed: Vec<OwnedSemaphorePermit>,
}

impl FlowCap {
    /// Flows looked at in vain before one has to go: with all of them busy the search for an
    /// idle one must not take forever.
    const MOST_SPARED: u32 = 64;

    pub(crate) fn new(most: usize, apart: usize, descriptors: Descriptors) -> Self {
        Self {
            most: most.max(1),
            apart: apart.max(1),
            descriptors,
            flows: Mutex::default(),
        }
    }

    /// Takes `flow` in; puts others out as long as there are too many, or no descriptor.
    pub(crate) fn admit(&self, flow: &Arc<Flow>) {
        let mut flows = self.flows();
        let mut spared = 0;
        while !self.has_room(&mut flows) {
            let Some(((known_use, serial), oldest)) = flows.by_use.pop_first() else {
                break;
            };
            let last_use = oldest.last_use();
            if last_use > known_use && spared < Self::MOST_SPARED {
                spared += 1;
                let place = (last_use, serial);
                oldest.set_place(place);
                flows.by_use.insert(place, oldest);
            } else {
                oldest.evict();
            }
        }
        flows.serial += 1;
        let place = (flow.last_use(), flows.serial);
        flow.set_place(place);
        flows.by_use.insert(place, Arc::clone(flow));
    }

    /// Forgets a flow that has ended.
    pub(crate) fn forget(&self, flow: &Flow) {
        // Its place only changes under this lock.
        let mut flows = self.flows();
        flows.by_use.remove(&flow.place());
        let still_needed = flows.by_use.len().saturating_sub(self.apart);
        flows.borrowed.truncate(still_needed);
    }

    fn has_room(&self, flows: &mut Flows) -> bool {
        let count = flows.by_use.len();
        if count >= self.most {
            return false;
        }
        if count >= self.apart + flows.borrowed.len() {
            flows.borrowed.extend(self.descriptors.for_datagrams());
        }
        count < self.apart + flows.borrowed.len()
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Which relays are away, and which other one stands in for each. Copies share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::relay_address::RelayAddress;

/// Relays that are away, by those that stand in for them.
pub(crate) type StandIns = BTreeMap<RelayAddress, RelayAddress>;

/// The detours of the moment.
#[derive(Clone, Debug)]
pub(crate) struct RelayDetours(Arc<watch::Sender<StandIns>>);

impl RelayDetours {
    /// Without any.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(StandIns::new())))
    }

    /// What stands in for `relay`, while that is away.
    pub(crate) fn stand_in(&self, relay: RelayAddress) -> Option<RelayAddress> {
        self.0.borrow().get(&relay).copied()
    }

    /// The detours as they change.
    pub(crate) fn follow(&self) -> watch::Receiver<StandIns> {
        self.0.subscribe()
    }

    /// The relays that are away now.
    pub(crate) fn away(&self) -> Vec<RelayAddress> {
        self.0.borrow().keys().copied().collect()
    }

    /// `relay` is away; `stand_in` does its work. Returns whether that is new.
    pub(crate) fn begin(&self, relay: RelayAddress, stand_in: RelayAddress) -> bool {
        self.0
            .send_if_modified(|detours| detours.insert(relay, stand_in) != Some(stand_in))
    }

    /// `relay` is back, or nobody's relay any more. Returns whether that is new.
    pub(crate) fn end(&self, relay: RelayAddress) -> bool {
        self.0
            .send_if_modified(|detours| detours.remove(&relay).is_some())
    }
}

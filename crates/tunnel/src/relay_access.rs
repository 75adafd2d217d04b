//! Who may use this node's relay: the peers, and this node itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use edgemesh_catalog::PublicKey;
use iroh::EndpointId;
use iroh_relay::server::clients::Clients;
use iroh_relay::server::{Access, AccessControl, ClientRequest, ConnectionId};
use tracing::warn;

use crate::peer_address::{endpoint_id, public_key};
use crate::relay_counters::RelayCounters;

/// Connections of one key at a time. A client has one; after a change of its address the one
/// before is there for half a minute more.
const PER_KEY: usize = 4;
/// At most one line per time about clients that were refused: each comes again and again.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// What a client that is refused is told, and shows in its status.
const REASON: &str = "this relay knows no peer with this key";

/// Decides about each client, and remembers those that it has let in.
#[derive(Clone, Debug)]
pub(crate) struct RelayAccess(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    guests: Mutex<Guests>,
    /// Where clients are cut; known only after the relay was made with this.
    clients: OnceLock<Clients>,
    counters: Arc<RelayCounters>,
}

#[derive(Debug, Default)]
struct Guests {
    admitted: BTreeSet<PublicKey>,
    /// Oldest first.
    connections: BTreeMap<PublicKey, VecDeque<ConnectionId>>,
    log: LogLimit,
}

#[derive(Debug, Default)]
struct LogLimit {
    last: Option<Instant>,
    withheld: u64,
}

impl RelayAccess {
    /// Lets nobody in until [`RelayAccess::admit`] was called.
    pub(crate) fn new(counters: Arc<RelayCounters>) -> Self {
        Self(Arc::new(Shared {
            guests: Mutex::default(),
            clients: OnceLock::new(),
            counters,
        }))
    }

    /// To be told before anybody connects.
    pub(crate) fn set_clients(&self, clients: Clients) {
        // Told once: the relay that this was made for.
        let _ = self.0.clients.set(clients);
    }

    /// From now on these keys may connect; the connections of all others are cut by
    /// [`RelayAccess::cut_strangers`].
    pub(crate) fn admit(&self, keys: BTreeSet<PublicKey>) {
        self.guests().admitted = keys;
    }

    /// Cuts the connections of those who may no longer connect. Returns whether some are
    /// left that have to be cut later: a client between its admission and its first packet
    /// cannot be.
    pub(crate) fn cut_strangers(&self) -> bool {
        let strangers: Vec<_> = {
            let guests = self.guests();
            let keys = guests.connections.keys();
            keys.filter(|key| !guests.admitted.contains(key))
                .copied()
                .collect()
        };
        for key in &strangers {
            self.cut(key, None);
        }
        !strangers.is_empty()
    }

    fn cut(&self, key: &PublicKey, connection: Option<ConnectionId>) {
        if let (Some(clients), Some(id)) = (self.0.clients.get(), endpoint_id(key))
            && clients.disconnect(id, connection)
        {
            self.0.counters.note_cut();
        }
    }

    fn decide(&self, key: PublicKey, connection: ConnectionId) -> Access {
        let mut guests = self.guests();
        if !guests.admitted.contains(&key) {
            self.0.counters.note_denied();
            if let Some(withheld) = guests.log.admit(Instant::now()) {
                warn!(%key, withheld, "refused a relay client whose key is no peer's");
            }
            let reason = Some(REASON.to_owned());
            return Access::Deny { reason };
        }
        let connections = guests.connections.entry(key).or_default();
        if connections.is_empty() {
            self.0.counters.note_client_came();
        }
        connections.push_back(connection);
        let surplus = connections.len() > PER_KEY;
        let oldest = surplus.then(|| connections.pop_front()).flatten();
        drop(guests);
        if let Some(oldest) = oldest {
            self.cut(&key, Some(oldest));
        }
        Access::Allow
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessControl for RelayAccess {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        self.decide(public_key(&request.endpoint_id()), request.connection_id())
    }

    fn on_disconnect(&self, client: EndpointId, connection: ConnectionId) {
        let key = public_key(&client);
        let mut guests = self.guests();
        if let Some(connections) = guests.connections.get_mut(&key) {
            connections.retain(|known| *known != connection);
            if connections.is_empty() {
                guests.connections.remove(&key);
                self.0.counters.note_client_left();
            }
        }
    }
}

impl LogLimit {
    /// Whether a line may be written now, and if so how many were withheld before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let last = self.last;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_EVERY) {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_come_again_and_again_fill_no_log() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let written = (0..50).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(written, 1);
        assert_eq!(limit.admit(start + LOG_EVERY), Some(49));
    }
}

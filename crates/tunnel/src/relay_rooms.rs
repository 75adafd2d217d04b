//! The rooms of this node's relay: one for its own clients, and one for the clients of each
//! relay that it stands in for. Clients of one room reach each other, and nobody else.
//!
//! They are apart because a node may be in several at once: as a client of this relay, and of
//! one that is away. A relay sends what is for a key to the connection that came last, and
//! the transport takes the way that a packet came by for its path.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgemesh_catalog::{NodeName, PublicKey};
use futures_util::future::join_all;
use hyper::HeaderMap;
use iroh_relay::KeyCache;
use iroh_relay::server::ClientRateLimit;
use iroh_relay::server::http_server::{Handlers, RelayService};
use tracing::info;

use crate::relay_access::RelayAccess;
use crate::relay_address::RelayAddress;
use crate::relay_book::RelayBook;
use crate::relay_counters::RelayCounters;

/// Keys that are kept in the form in which they are verified, for each room.
const KEYS_AT_HAND: usize = 4096;

/// All rooms. Copies share them.
#[derive(Clone, Debug)]
pub(crate) struct RelayRooms(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: RelayBook,
    counters: Arc<RelayCounters>,
    client_bytes_per_second: NonZeroU32,
    rooms: Mutex<Rooms>,
}

#[derive(Debug, Default)]
struct Rooms {
    admitted: BTreeSet<PublicKey>,
    /// By the node whose relay's clients are in it; none for those of this node's.
    rooms: BTreeMap<Option<NodeName>, Room>,
}

#[derive(Clone, Debug)]
struct Room {
    access: RelayAccess,
    service: RelayService,
}

impl RelayRooms {
    /// Empty rooms. `book` tells who the other relays are.
    pub(crate) fn new(
        book: RelayBook,
        counters: Arc<RelayCounters>,
        client_bytes_per_second: NonZeroU32,
    ) -> Self {
        Self(Arc::new(Shared {
            book,
            counters,
            client_bytes_per_second,
            rooms: Mutex::default(),
        }))
    }

    /// The room for a client that asked for the relay at `host`, an address and a port: this
    /// relay's own, unless that is known to be another relay's.
    pub(crate) fn for_host(&self, host: Option<&str>) -> RelayService {
        let asked_for = host.and_then(address_of);
        let relays = self.0.book.get();
        let stands_in_for = asked_for.and_then(|address| relays.stands_in_for(address));
        let mut rooms = self.rooms();
        let known = rooms.rooms.get(&stands_in_for.cloned()).cloned();
        let room = known.unwrap_or_else(|| {
            if let Some(node) = stands_in_for {
                info!(%node, "this relay stands in for another, which is away");
            }
            let room = self.open(rooms.admitted.clone());
            rooms.rooms.insert(stands_in_for.cloned(), room.clone());
            room
        });
        room.service
    }

    fn open(&self, admitted: BTreeSet<PublicKey>) -> Room {
        let access = RelayAccess::new(Arc::clone(&self.0.counters));
        access.admit(admitted);
        let service = RelayService::new(
            Handlers::default(),
            HeaderMap::new(),
            Some(ClientRateLimit::new(self.0.client_bytes_per_second)),
            KeyCache::new(KEYS_AT_HAND),
            Arc::new(access.clone()),
            self.0.counters.of_relay(),
        );
        access.set_clients(service.clients().clone());
        Room { access, service }
    }

    /// From now on these keys may connect; see [`RelayAccess::admit`].
    pub(crate) fn admit(&self, keys: BTreeSet<PublicKey>) {
        let mut rooms = self.rooms();
        for room in rooms.rooms.values() {
            room.access.admit(keys.clone());
        }
        rooms.admitted = keys;
    }

    /// Cuts those who may no longer connect; see [`RelayAccess::cut_strangers`].
    pub(crate) fn cut_strangers(&self) -> bool {
        let rooms = self.all();
        // All of them, also when there is one left in the first.
        let left = rooms.iter().filter(|room| room.access.cut_strangers());
        left.count() > 0
    }

    /// Ends all clients' connections.
    pub(crate) async fn shutdown(&self) {
        let rooms = self.all();
        join_all(rooms.iter().map(|room| room.service.shutdown())).await;
    }

    fn all(&self) -> Vec<Room> {
        self.rooms().rooms.values().cloned().collect()
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address_of(host: &str) -> Option<RelayAddress> {
    RelayAddress::of_url(&format!("http://{host}/").parse().ok()?)
}

//! Takes in connections that peers begin, and nobody else's.

use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::PublicKey;
use iroh::endpoint::{Connection, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::codes;
use crate::link::Link;
use crate::peer_address::public_key;
use crate::tunnel::Inner;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long who is no peer may take to become one: an agent that has a new key, or has never
/// run before, is here sooner than word of it from the cluster.
const INTRODUCTION: Duration = Duration::from_secs(1);
/// How many may wait for that at a time.
const MOST_TO_BE_INTRODUCED: usize = 32;

/// What each handshake takes place in.
#[derive(Clone, Debug)]
struct Door {
    inner: Arc<Inner>,
    /// Waiting for word of them, they keep no others from their handshake.
    to_be_introduced: Arc<Semaphore>,
}

/// Accepts connections until the endpoint is closed or `stop` is given.
pub(crate) async fn accept(inner: Arc<Inner>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(inner.limits.handshakes));
    let door = Door {
        inner: Arc::clone(&inner),
        to_be_introduced: Arc::new(Semaphore::new(MOST_TO_BE_INTRODUCED)),
    };
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = handshakes.join_next() => {
                if let Err(panic) = ended {
                    error!(%panic, "a handshake's task panicked");
                }
            }
            incoming = inner.endpoint.accept() => match incoming {
                Some(incoming) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        handshakes.spawn(door.clone().shake_hands(incoming, place));
                    }
                    Err(_) => {
                        inner.counters.handshake_refused();
                        incoming.refuse();
                    }
                },
                None => break,
            }
        }
    }
    handshakes.shutdown().await;
}

impl Door {
    /// The handshake proves who the other end is; the cluster says whether that is a peer.
    async fn shake_hands(self, incoming: Incoming, place: OwnedSemaphorePermit) {
        let from = incoming.remote_addr();
        let Ok(accepting) = incoming.accept() else {
            return;
        };
        let connection = match timeout(HANDSHAKE, accepting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return debug!(?from, %error, "a handshake failed"),
            Err(_) => return debug!(?from, "a handshake took too long"),
        };
        drop(place);
        let key = public_key(&connection.remote_id());
        match self.link_of(&key, &connection).await {
            Some(link) => link.adopt(connection),
            None => {
                self.inner.counters.stranger();
                debug!(?from, %key, "refused: no MeshNode that is believed has this key");
                connection.close(codes::NOT_A_PEER, b"no believed MeshNode has your key");
            }
        }
    }

    /// The way to the peer with this key, once the cluster has told of it.
    async fn link_of(&self, key: &PublicKey, connection: &Connection) -> Option<Arc<Link>> {
        let mut peers = self.inner.peers.clone();
        if peers.borrow_and_update().with_key(key).is_none() {
            let _waiting = self.to_be_introduced.try_acquire().ok()?;
            let introduced = peers.wait_for(|peers| peers.with_key(key).is_some());
            tokio::select! {
                _ = timeout(INTRODUCTION, introduced) => {}
                _ = connection.closed() => {}
            }
        }
        let peers = Arc::clone(&self.inner.peers.borrow());
        let peer = peers.with_key(key)?;
        self.inner.link(peer.name()).ok()
    }
}

//! Takes in connections that peers begin, and nobody else's.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::codes;
use crate::peer_address::public_key;
use crate::tunnel::Inner;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections until the endpoint is closed or `stop` is given.
pub(crate) async fn accept(inner: Arc<Inner>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(inner.limits.handshakes));
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
                        handshakes.spawn(shake_hands(Arc::clone(&inner), incoming, place));
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

/// The handshake proves who the other end is; the cluster says whether that is a peer.
async fn shake_hands(inner: Arc<Inner>, incoming: Incoming, _place: OwnedSemaphorePermit) {
    let from = incoming.remote_addr();
    let Ok(accepting) = incoming.accept() else {
        return;
    };
    let connection = match timeout(HANDSHAKE, accepting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(?from, %error, "a handshake failed"),
        Err(_) => return debug!(?from, "a handshake took too long"),
    };
    let key = public_key(&connection.remote_id());
    let peers = Arc::clone(&inner.peers.borrow());
    let link = peers
        .with_key(&key)
        .and_then(|peer| inner.link(peer.name()).ok());
    match link {
        Some(link) => link.adopt(connection),
        None => {
            inner.counters.stranger();
            debug!(?from, %key, "refused: no MeshNode that is believed has this key");
            connection.close(codes::NOT_A_PEER, b"no believed MeshNode has your key");
        }
    }
}

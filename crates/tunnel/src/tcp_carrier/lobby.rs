//! Where connections that a peer makes find the stream that they are for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgemesh_catalog::PublicKey;
use edgemesh_wire::LaneToken;
use tokio::sync::oneshot;

use super::handshake::Secured;

/// Connections that are expected, by their tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Lobby(Arc<Mutex<BTreeMap<LaneToken, Awaited>>>);

#[derive(Debug)]
struct Awaited {
    /// Who has to bring the token.
    key: PublicKey,
    give: oneshot::Sender<Secured>,
}

/// A connection that is expected, until the value is dropped.
#[derive(Debug)]
pub(super) struct Expected {
    lobby: Lobby,
    token: LaneToken,
    given: oneshot::Receiver<Secured>,
}

/// Somebody who waits for a connection.
#[derive(Debug)]
pub(super) struct Waiting(oneshot::Sender<Secured>);

impl Lobby {
    /// From now on the peer with `key` is expected to bring `token`.
    pub(super) fn expect(&self, token: LaneToken, key: PublicKey) -> Expected {
        let (give, given) = oneshot::channel();
        self.awaited().insert(token, Awaited { key, give });
        Expected {
            lobby: self.clone(),
            token,
            given,
        }
    }

    /// Who waits for the connection on which the owner of `key` has brought `token`.
    pub(super) fn find(&self, token: &LaneToken, key: &PublicKey) -> Option<Waiting> {
        let mut awaited = self.awaited();
        if awaited.get(token)?.key != *key {
            return None;
        }
        awaited.remove(token).map(|awaited| Waiting(awaited.give))
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeMap<LaneToken, Awaited>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    pub(super) fn give(self, secured: Secured) {
        // Who waits no more closes it.
        let _ = self.0.send(secured);
    }
}

impl Expected {
    /// The connection; none when whoever brought it was not able to keep it.
    pub(super) async fn arrived(&mut self) -> Option<Secured> {
        (&mut self.given).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.lobby.awaited().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_peer_once_and_while_it_is_awaited() {
        let [peer, other] = [[1; 32], [2; 32]].map(PublicKey::from_bytes);
        let [token, unknown] = [LaneToken([1; 16]), LaneToken([2; 16])];
        let lobby = Lobby::default();
        let expected = lobby.expect(token, peer);
        assert!(lobby.find(&unknown, &peer).is_none());
        assert!(lobby.find(&token, &other).is_none());
        assert!(lobby.find(&token, &peer).is_some());
        assert!(lobby.find(&token, &peer).is_none());
        drop(expected);
        drop(lobby.expect(token, peer));
        assert!(lobby.find(&token, &peer).is_none());
        assert!(lobby.awaited().is_empty());
    }
}

//! Tells of peers that are not believed: once each, as long as nothing about them changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use edgemesh_catalog::{NodeName, PublicKey};
use edgemesh_tunnel::{Peers, RefusedPeer};
use edgemesh_watch::PeerEvent;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Things to be told that may wait to be told. More than that at once is an attack or a
/// mistake made everywhere; the number is in the metrics all the same.
pub(super) const MOST_WAITING: usize = 64;

/// Who was told of already.
#[derive(Debug, Default)]
struct ToldOf(BTreeSet<(NodeName, PublicKey, &'static str)>);

impl ToldOf {
    /// What is new in `refused`.
    fn news(&mut self, refused: &[RefusedPeer]) -> Vec<PeerEvent> {
        let before = std::mem::take(&mut self.0);
        self.0 = refused.iter().map(identity).collect();
        refused
            .iter()
            .filter(|peer| !before.contains(&identity(peer)))
            .map(event)
            .collect()
    }
}

fn identity(peer: &RefusedPeer) -> (NodeName, PublicKey, &'static str) {
    (peer.node.clone(), peer.key, peer.reason.word())
}

fn event(peer: &RefusedPeer) -> PeerEvent {
    PeerEvent {
        node: peer.node.clone(),
        reason: peer.reason.word(),
        message: format!(
            "the MeshNode of {} is not believed: {}",
            peer.node, peer.reason
        ),
    }
}

/// Tells what `peers` brings until `stop`.
pub(super) async fn tell(
    mut peers: watch::Receiver<Arc<Peers>>,
    told: mpsc::Sender<PeerEvent>,
    stop: CancellationToken,
) {
    let mut known = ToldOf::default();
    loop {
        let now = Arc::clone(&peers.borrow_and_update());
        for event in known.news(now.refused()) {
            // Whoever writes it down is busy with others.
            let _ = told.try_send(event);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = peers.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_tunnel::NotBelieved;

    use super::*;

    fn refused(node: &str, reason: NotBelieved) -> RefusedPeer {
        RefusedPeer {
            node: NodeName::new(node),
            key: PublicKey::from_bytes([7; 32]),
            reason,
        }
    }

    #[test]
    fn a_peer_is_told_of_once_and_again_when_it_is_refused_for_another_reason() {
        let mut told = ToldOf::default();
        let gone = refused("edge-9", NotBelieved::NodeGone);
        let first = told.news(std::slice::from_ref(&gone));
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].reason, "NodeGone");
        assert!(first[0].message.contains("edge-9"), "{}", first[0].message);
        assert!(told.news(std::slice::from_ref(&gone)).is_empty());
        assert_eq!(
            told.news(&[refused("edge-9", NotBelieved::OwnKey)]).len(),
            1
        );
    }

    #[test]
    fn a_peer_that_comes_back_after_it_was_well_is_told_of_again() {
        let mut told = ToldOf::default();
        let gone = [refused("edge-9", NotBelieved::NodeGone)];
        told.news(&gone);
        assert!(told.news(&[]).is_empty());
        assert_eq!(told.news(&gone).len(), 1);
    }
}

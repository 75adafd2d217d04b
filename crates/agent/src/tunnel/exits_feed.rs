//! Tells the tunnel what the cluster says, by which it knows its peers and what its exit may dial.

use std::sync::Arc;

use edgemesh_plan::{Exits, Policy};
use edgemesh_watch::SourceState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the tunnel is to follow.
pub(super) struct ExitsFeed {
    pub(super) source: watch::Receiver<SourceState>,
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) exits: watch::Sender<Arc<Exits>>,
}

impl ExitsFeed {
    /// A feed, and what comes of it: until the catalog is complete nobody is a peer and
    /// nothing may be dialled.
    pub(super) fn new(
        source: watch::Receiver<SourceState>,
        policy: watch::Receiver<Policy>,
    ) -> (Self, watch::Receiver<Arc<Exits>>) {
        let nothing = Exits::new(Default::default(), policy.borrow().clone());
        let (exits, seen) = watch::channel(Arc::new(nothing));
        let feed = Self {
            source,
            policy,
            exits,
        };
        (feed, seen)
    }

    /// Follows source and policy until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.tell();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = self.source.changed() => {}
                Ok(()) = self.policy.changed() => {}
            }
        }
    }

    fn tell(&mut self) {
        let (catalog, complete) = {
            let state = self.source.borrow_and_update();
            (state.catalog.clone(), state.complete)
        };
        let policy = self.policy.borrow_and_update().clone();
        // Half a list of MeshNodes looks like peers that are gone.
        if complete {
            self.exits
                .send_replace(Arc::new(Exits::new(catalog, policy)));
        }
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{Catalog, Change, Fold, Node, NodeName};
    use edgemesh_plan::FilterMode;

    use super::*;

    fn policy() -> Policy {
        Policy::of(NodeName::new("edge-1"))
    }

    fn one_node() -> Catalog {
        let mut fold = Fold::default();
        fold.apply(Change::Node(Node {
            name: NodeName::new("edge-1"),
            zone: None,
            pod_cidrs: vec![],
            addresses: vec![],
            labels: Default::default(),
        }));
        fold.catalog()
    }

    #[tokio::test]
    async fn a_catalog_is_told_when_it_is_complete_and_again_when_the_policy_changes() {
        let (source, source_seen) = watch::channel(SourceState::default());
        let (policy, policy_seen) = watch::channel(policy());
        let (feed, mut exits) = ExitsFeed::new(source_seen, policy_seen);
        let stop = CancellationToken::new();
        let follow = async {
            source.send_modify(|state| state.catalog = one_node());
            source.send_modify(|state| state.complete = true);
            let told = exits.wait_for(|exits| !exits.catalog().is_empty()).await;
            assert_eq!(told.unwrap().catalog().nodes().count(), 1);
            policy.send_modify(|policy| policy.filter = FilterMode::IfLabelDoesNotExist);
            let inverted =
                |exits: &Arc<Exits>| exits.policy().filter == FilterMode::IfLabelDoesNotExist;
            exits.wait_for(inverted).await.unwrap();
            stop.cancel();
        };
        tokio::join!(feed.run(stop.clone()), follow);
    }

    #[test]
    fn half_a_catalog_is_not_told() {
        let state = SourceState {
            catalog: one_node(),
            ..SourceState::default()
        };
        let (mut feed, exits) = ExitsFeed::new(watch::channel(state).1, watch::channel(policy()).1);
        feed.tell();
        assert!(exits.borrow().catalog().is_empty());
    }
}

//! What a plan is made of, as it comes in.

use edgemesh_catalog::Catalog;
use edgemesh_plan::{Policy, Reachability};
use edgemesh_watch::SourceState;
use tokio::sync::watch;

/// What the loop reads.
pub(crate) struct Inputs {
    /// The catalog.
    pub(crate) source: watch::Receiver<SourceState>,
    /// Which nodes are reached through the tunnel. Where there is one it says so as soon as
    /// it has seen the catalog.
    pub(crate) reachability: watch::Receiver<Reachability>,
    /// Whether there is a tunnel.
    pub(crate) has_tunnel: bool,
    /// What the operator decided.
    pub(crate) policy: watch::Receiver<Policy>,
}

impl Inputs {
    /// Whether it is known how the nodes of `catalog` are reached. A plan made before would
    /// have what is beyond NATs dialled natively, to no avail.
    pub(super) fn knows_ways(&self, catalog: &Catalog) -> bool {
        let tunnel_knows = self.reachability.borrow().has_tunnel();
        tunnel_knows || !self.has_tunnel || catalog.is_empty()
    }

    /// Waits until it is. The source is complete.
    pub(super) async fn ways_known(&mut self) {
        let catalog = self.source.borrow().catalog.clone();
        while !self.knows_ways(&catalog) {
            if self.reachability.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{Change, Fold, Node, NodeName};

    use super::*;

    fn inputs(has_tunnel: bool, reachability: Reachability, catalog: Catalog) -> Inputs {
        let state = SourceState {
            catalog,
            complete: true,
            ..SourceState::default()
        };
        let policy = Policy::of(NodeName::new("edge-1"));
        Inputs {
            source: watch::channel(state).1,
            reachability: watch::channel(reachability).1,
            has_tunnel,
            policy: watch::channel(policy).1,
        }
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

    #[test]
    fn with_a_tunnel_nothing_is_planned_before_it_has_seen_the_catalog() {
        let unseen = inputs(true, Reachability::default(), one_node());
        assert!(!unseen.knows_ways(&one_node()));
        let seen = inputs(true, Reachability::with_peers([]), one_node());
        assert!(seen.knows_ways(&one_node()));
    }

    #[test]
    fn without_a_tunnel_or_without_a_cluster_nobody_is_waited_for() {
        let none = inputs(false, Reachability::default(), one_node());
        assert!(none.knows_ways(&one_node()));
        let empty = inputs(true, Reachability::default(), Catalog::default());
        assert!(empty.knows_ways(&Catalog::default()));
    }
}

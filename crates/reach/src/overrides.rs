//! What the operator says of how peers are reached. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, Node};
use edgemesh_plan::{Override, OverrideScope, Way};
use ipnet::IpNet;

/// One of `modules.edgeProxy.reachability.overrides`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideRule {
    /// Which endpoints it is about.
    pub of: Selection,
    /// How they are reached.
    pub way: Way,
}

/// Which endpoints an [`OverrideRule`] is about. Only those on peers are, whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those on nodes that have all these labels.
    Labels(BTreeMap<Arc<str>, Arc<str>>),
    /// Those with addresses in one of these networks.
    Networks(Vec<IpNet>),
}

/// What the rules mean for the nodes that there are.
pub(crate) fn resolve(rules: &[OverrideRule], catalog: &Catalog) -> Arc<[Override]> {
    let resolved = rules.iter().map(|rule| Override {
        way: rule.way,
        scope: match &rule.of {
            Selection::Networks(networks) => OverrideScope::Networks(networks.clone()),
            Selection::Labels(labels) => {
                let selected = catalog.nodes().filter(|node| has_all(node, labels));
                OverrideScope::Nodes(selected.map(|node| node.name.clone()).collect())
            }
        },
    });
    resolved.collect()
}

fn has_all(node: &Node, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
    let mut wanted = labels.iter();
    wanted.all(|(key, value)| node.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{Change, Fold, NodeName};

    use super::*;

    fn labels<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<Arc<str>, Arc<str>> {
        of.map(|(key, value)| (key.into(), value.into())).into()
    }

    #[test]
    fn nodes_are_selected_that_have_all_the_labels() {
        let mut fold = Fold::default();
        for (name, of) in [
            ("a", labels([("site", "x"), ("vpn", "yes")])),
            ("b", labels([("site", "x"), ("vpn", "no")])),
            ("c", labels([("vpn", "yes")])),
        ] {
            fold.apply(Change::Node(Node {
                name: NodeName::new(name),
                zone: None,
                pod_cidrs: Vec::new(),
                addresses: Vec::new(),
                labels: of,
            }));
        }
        let rule = OverrideRule {
            of: Selection::Labels(labels([("site", "x"), ("vpn", "yes")])),
            way: Way::Native,
        };
        let resolved = resolve(&[rule], &fold.catalog());
        let expected = Override {
            scope: OverrideScope::Nodes([NodeName::new("a")].into()),
            way: Way::Native,
        };
        assert_eq!(*resolved, [expected]);
    }
}

//! `modules.edgeProxy.reachability`: how it is found out which peers need no tunnel, and what
//! the operator says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use edgemesh_plan::Way;
use edgemesh_reach::{OverrideRule, Selection};
use edgemesh_yaml::{Kind, Node};
use ipnet::IpNet;

use super::findings::Report;
use super::mapping::entries;
use super::values::{OneOf, Reader, Scalar, described, quoted, text};

/// `modules.edgeProxy.reachability`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReachabilityConfig {
    /// Whether peers are probed, and probes of theirs answered.
    pub(crate) probe: bool,
    /// UDP port at which they are answered.
    pub(crate) probe_port: u16,
    /// What is so whatever probes tell; the first that fits counts.
    pub(crate) overrides: Vec<OverrideRule>,
}

impl Default for ReachabilityConfig {
    fn default() -> Self {
        Self {
            probe: true,
            probe_port: 20010,
            overrides: Vec::new(),
        }
    }
}

impl ReachabilityConfig {
    /// The labels of Nodes that are selected by.
    #[must_use]
    pub(crate) fn node_labels(&self) -> BTreeSet<Arc<str>> {
        let labels = self.overrides.iter().filter_map(|rule| match &rule.of {
            Selection::Labels(labels) => Some(labels.keys().cloned()),
            Selection::Networks(_) => None,
        });
        labels.flatten().collect()
    }
}

const WAY: OneOf<Way> = OneOf(&[("direct", Way::Native), ("tunnel", Way::Tunnel)]);

/// A network in the notation of addresses and prefix lengths.
struct Network;

impl Scalar for Network {
    type Value = IpNet;

    fn accepts(&self) -> String {
        "a network, as 10.244.0.0/16 or fd00:10::/32, with nothing behind its prefix".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<IpNet> {
        let network: IpNet = text(node)?.parse().ok()?;
        (network.trunc() == network).then_some(network)
    }

    fn show(&self, value: &IpNet) -> String {
        quoted(&value.to_string())
    }
}

const NETWORKS: super::values::List<Network> = super::values::List(Network);

/// The list of overrides.
pub(super) struct Overrides;

impl Reader for Overrides {
    type Value = Vec<OverrideRule>;

    fn accepts(&self) -> String {
        "a list; each item a `way`, `direct` or `tunnel`, and either a `nodeSelector` with its \
         `matchLabels` or `cidrs`, a list of networks"
            .to_owned()
    }

    fn read(&self, node: Node<'_>, path: &str, report: &mut Report) -> Option<Vec<OverrideRule>> {
        if node.kind() != Kind::Sequence {
            let message = format!("must be a list; found {}", described(&node));
            report.error(node.mark(), path, message);
            return None;
        }
        let rules: Vec<Option<OverrideRule>> = node
            .items()
            .enumerate()
            .map(|(i, item)| rule(item, &format!("{path}[{i}]"), report))
            .collect();
        rules.into_iter().collect()
    }

    fn show(&self, value: &Vec<OverrideRule>) -> String {
        let rules: Vec<String> = value.iter().map(show_rule).collect();
        format!("[{}]", rules.join(", "))
    }
}

fn rule(node: Node<'_>, path: &str, report: &mut Report) -> Option<OverrideRule> {
    let mistakes = report.mistakes();
    let mark = node.mark();
    let (mut labels, mut networks, mut way) = (None, None, None);
    for (key, value) in entries(node, path, &["nodeSelector", "cidrs", "way"], report) {
        let path = format!("{path}.{key}");
        match key {
            "nodeSelector" => labels = Some(selector(value, &path, report)),
            "cidrs" => networks = NETWORKS.read(value, &path, report),
            _ => way = WAY.read(value, &path, report),
        }
    }
    if report.mistakes() > mistakes {
        return None;
    }
    let of = match (labels, networks) {
        (Some(labels), None) => Selection::Labels(labels),
        (None, Some(networks)) if !networks.is_empty() => Selection::Networks(networks),
        (None, None | Some(_)) => {
            report.error(
                mark,
                path,
                "says of nobody how they are reached; set nodeSelector or cidrs",
            );
            return None;
        }
        (Some(_), Some(_)) => {
            let message = "has both nodeSelector and cidrs; make two items of it";
            report.error(mark, path, message);
            return None;
        }
    };
    let Some(way) = way else {
        report.error(mark, path, "says no way; set way to direct or tunnel");
        return None;
    };
    Some(OverrideRule { of, way })
}

/// The labels that a node must have, all of them.
fn selector(node: Node<'_>, path: &str, report: &mut Report) -> BTreeMap<Arc<str>, Arc<str>> {
    let mark = node.mark();
    let mistakes = report.mistakes();
    let mut labels = BTreeMap::new();
    for (key, value) in entries(node, path, &["matchLabels"], report) {
        let path = format!("{path}.{key}");
        if value.kind() != Kind::Mapping {
            let message = format!("must be a mapping of labels; found {}", described(&value));
            report.error(value.mark(), &path, message);
            continue;
        }
        for (label, value) in value.entries() {
            match text(&value) {
                Some(text) => {
                    labels.insert(label.into(), text.as_str().into());
                }
                None => {
                    let message = format!("must be text; found {}", described(&value));
                    report.error(value.mark(), &format!("{path}.{label}"), message);
                }
            }
        }
    }
    if labels.is_empty() && report.mistakes() == mistakes {
        let message = "selects by no label; set matchLabels, or for all nodes cidrs of all \
                       addresses, 0.0.0.0/0 and ::/0";
        report.error(mark, path, message);
    }
    labels
}

fn show_rule(rule: &OverrideRule) -> String {
    let of = match &rule.of {
        Selection::Labels(labels) => {
            let labels = labels.iter();
            let labels: Vec<String> = labels
                .map(|(label, value)| format!("{}: {}", quoted(label), quoted(value)))
                .collect();
            format!("nodeSelector: {{matchLabels: {{{}}}}}", labels.join(", "))
        }
        Selection::Networks(networks) => format!("cidrs: {}", NETWORKS.show(networks)),
    };
    format!("{{{of}, way: {}}}", Scalar::show(&WAY, &rule.way))
}

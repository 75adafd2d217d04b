//! What the sync loop tells `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edgemesh_catalog::Catalog;
use edgemesh_rules::{Applied, BackendKind, Family};

use crate::metrics::{Figures, Kind, Sample};
use crate::wanted::Handling;

/// Figures of the sync loop, as of its last round.
#[derive(Debug, Default)]
pub(crate) struct SyncFigures(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    services: usize,
    slices: usize,
    nodes: usize,
    handling: Handling,
    syncs: u64,
    failures: u64,
    repairs: u64,
    last_apply: Duration,
    lines: u64,
    backends: BTreeMap<Family, BackendKind>,
}

impl SyncFigures {
    /// A plan was made and is in force.
    pub(crate) fn planned(&self, catalog: &Catalog, handling: Handling) {
        self.with(|state| {
            state.services = catalog.services().count();
            state.slices = catalog.slices().count();
            state.nodes = catalog.nodes().count();
            state.handling = handling;
            state.syncs += 1;
        });
    }

    /// A family's rules were brought up to date.
    pub(crate) fn applied(&self, applied: &Applied) {
        self.with(|state| {
            state.last_apply = applied.took;
            state.lines += applied.lines as u64;
        });
    }

    /// A family's rules are in, by this way.
    pub(crate) fn goes_by(&self, family: Family, way: BackendKind) {
        self.with(|state| {
            state.backends.insert(family, way);
        });
    }

    /// Something of ours that somebody removed was put back.
    pub(crate) fn repaired(&self) {
        self.with(|state| state.repairs += 1);
    }

    /// A round failed.
    pub(crate) fn failed(&self) {
        self.with(|state| state.failures += 1);
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // A panic elsewhere while holding the lock leaves plain numbers behind.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Figures for std::sync::Arc<SyncFigures> {
    fn samples(&self) -> Vec<Sample> {
        let state = self.with(|state| state.clone());
        let objects = [
            ("service", state.services),
            ("endpointslice", state.slices),
            ("node", state.nodes),
        ];
        let portals = [
            ("kernel", state.handling.by_kernel),
            ("kernel_and_agent", state.handling.by_both),
            ("user_mode", state.handling.by_agent),
            ("refused", state.handling.refused),
            ("left_alone", state.handling.left_alone),
            ("failed", state.handling.failed),
        ];
        let labelled = |name, help, label, values: &[(&str, usize)]| -> Vec<Sample> {
            values
                .iter()
                .map(|(kind, count)| Sample {
                    name,
                    help,
                    kind: Kind::Gauge,
                    labels: vec![(label, (*kind).to_owned())],
                    value: *count as f64,
                })
                .collect()
        };
        let single = |name, help, kind, value| Sample {
            name,
            help,
            kind,
            labels: vec![],
            value,
        };
        let mut samples = labelled(
            "edgemesh_catalog_objects",
            "Objects in the catalog",
            "kind",
            &objects,
        );
        samples.extend(labelled(
            "edgemesh_portals",
            "Service ports and ClusterIPs by what becomes of their traffic",
            "handling",
            &portals,
        ));
        samples.extend(state.backends.iter().map(|(family, way)| Sample {
            name: "edgemesh_backend_info",
            help: "By which way a family's rules are in the kernel; always 1",
            kind: Kind::Gauge,
            labels: vec![("family", family.to_string()), ("backend", way.to_string())],
            value: 1.0,
        }));
        samples.extend([
            single(
                "edgemesh_syncs",
                "Plans that were made and put in force",
                Kind::Counter,
                state.syncs as f64,
            ),
            single(
                "edgemesh_sync_failures",
                "Rounds of the sync loop that failed and were tried again",
                Kind::Counter,
                state.failures as f64,
            ),
            single(
                "edgemesh_repairs",
                "Times that something of ours was put back after somebody removed or overtook it",
                Kind::Counter,
                state.repairs as f64,
            ),
            single(
                "edgemesh_rule_lines",
                "Rules, chains and map elements that the kernel was told to add or delete",
                Kind::Counter,
                state.lines as f64,
            ),
            single(
                "edgemesh_last_apply_seconds",
                "Duration of the last change of rules",
                Kind::Gauge,
                state.last_apply.as_secs_f64(),
            ),
        ]);
        samples
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edgemesh_rules::Flavour;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn each_family_tells_the_one_way_that_it_goes_by() {
        let figures = Arc::new(SyncFigures::default());
        let page = || Metrics::new(vec![Box::new(Arc::clone(&figures))]).encode();
        assert!(!page().unwrap().contains("edgemesh_backend_info"));
        figures.goes_by(Family::V4, BackendKind::Iptables(Flavour::Legacy));
        figures.goes_by(Family::V6, BackendKind::Nftables);
        figures.goes_by(Family::V4, BackendKind::Nftables);
        let page = page().unwrap();
        let told: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("edgemesh_backend_info"))
            .collect();
        assert_eq!(
            told,
            [
                "edgemesh_backend_info{family=\"IPv4\",backend=\"nftables\"} 1.0",
                "edgemesh_backend_info{family=\"IPv6\",backend=\"nftables\"} 1.0",
            ]
        );
    }
}

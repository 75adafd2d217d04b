//! Whatever is folded in whatever order, the result is that of a fresh list.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    Endpoint, EndpointPort, EndpointState, Protocol, PublicKey, ServiceKind, ServicePort,
    TrafficPolicy,
};

fn service(name: u8, port: u16) -> Service {
    Service {
        name: service_name(name),
        kind: ServiceKind::ClusterIp,
        cluster_ips: Vec::new(),
        headless: false,
        filter_label: port.is_multiple_of(2),
        session_affinity: Some(Duration::from_secs(port.into())),
        internal_traffic_policy: TrafficPolicy::Cluster,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port,
        }],
    }
}

fn slice(name: u8, service: u8, port: u16) -> EndpointSlice {
    EndpointSlice {
        name: slice_name(name),
        service: format!("svc-{service}").into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port,
        }],
        endpoints: vec![Endpoint {
            address: "10.244.1.2".parse().unwrap(),
            node: None,
            state: EndpointState::Ready,
            hints: None,
        }],
    }
}

fn node(name: u8, zone: u16) -> Node {
    Node {
        name: node_name(name),
        zone: Some(zone.to_string().into()),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        labels: Default::default(),
    }
}

fn mesh_node(name: u8, port: u16) -> MeshNode {
    MeshNode {
        name: node_name(name),
        uid: None,
        public_key: PublicKey::from_bytes([name; 32]),
        name_signature: None,
        addresses: vec![([192, 0, 2, name], port).into()],
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "1.0.0".into(),
        boot_id: "1".into(),
        previous_key: None,
    }
}

fn service_name(name: u8) -> ObjectName {
    ObjectName::new("default", format!("svc-{name}"))
}

fn slice_name(name: u8) -> ObjectName {
    ObjectName::new("default", format!("slice-{name}"))
}

fn node_name(name: u8) -> NodeName {
    NodeName::new(format!("node-{name}"))
}

/// The objects that there are, by nothing but their names.
#[derive(Clone, Debug, Default)]
struct Cluster {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<u8, EndpointSlice>,
    nodes: BTreeMap<u8, Node>,
    mesh_nodes: BTreeMap<u8, MeshNode>,
}

impl Cluster {
    fn listed(&self) -> Catalog {
        let mut fold = Fold::default();
        self.list_into(&mut fold);
        fold.catalog()
    }

    fn list_into(&self, fold: &mut Fold) -> bool {
        fold.replace_services(self.services.values().cloned())
            | fold.replace_slices(self.slices.values().cloned())
            | fold.replace_nodes(self.nodes.values().cloned())
            | fold.replace_mesh_nodes(self.mesh_nodes.values().cloned())
    }
}

/// A change of a cluster of few names and few contents, so that they clash often.
#[derive(Clone, Debug)]
enum Step {
    PutService(u8, u16),
    PutSlice(u8, u8, u16),
    PutNode(u8, u16),
    PutMeshNode(u8, u16),
    DropService(u8),
    DropSlice(u8),
    DropNode(u8),
    DropMeshNode(u8),
}

impl Step {
    fn change(&self) -> Change {
        match *self {
            Step::PutService(name, port) => Change::Service(service(name, port)),
            Step::PutSlice(name, of, port) => Change::Slice(slice(name, of, port)),
            Step::PutNode(name, zone) => Change::Node(node(name, zone)),
            Step::PutMeshNode(name, port) => Change::MeshNode(mesh_node(name, port)),
            Step::DropService(name) => Change::ServiceGone(service_name(name)),
            Step::DropSlice(name) => Change::SliceGone(slice_name(name)),
            Step::DropNode(name) => Change::NodeGone(node_name(name)),
            Step::DropMeshNode(name) => Change::MeshNodeGone(node_name(name)),
        }
    }

    fn happen(&self, cluster: &mut Cluster) {
        match *self {
            Step::PutService(name, port) => {
                cluster.services.insert(name, service(name, port));
            }
            Step::PutSlice(name, of, port) => {
                cluster.slices.insert(name, slice(name, of, port));
            }
            Step::PutNode(name, zone) => {
                cluster.nodes.insert(name, node(name, zone));
            }
            Step::PutMeshNode(name, port) => {
                cluster.mesh_nodes.insert(name, mesh_node(name, port));
            }
            Step::DropService(name) => {
                cluster.services.remove(&name);
            }
            Step::DropSlice(name) => {
                cluster.slices.remove(&name);
            }
            Step::DropNode(name) => {
                cluster.nodes.remove(&name);
            }
            Step::DropMeshNode(name) => {
                cluster.mesh_nodes.remove(&name);
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (name, content) = (0..4_u8, 1..4_u16);
    prop_oneof![
        3 => (name.clone(), content.clone()).prop_map(|(n, c)| Step::PutService(n, c)),
        4 => (name.clone(), name.clone(), content.clone())
            .prop_map(|(n, of, c)| Step::PutSlice(n, of, c)),
        2 => (name.clone(), content.clone()).prop_map(|(n, c)| Step::PutNode(n, c)),
        2 => (name.clone(), content).prop_map(|(n, c)| Step::PutMeshNode(n, c)),
        1 => name.clone().prop_map(Step::DropService),
        2 => name.clone().prop_map(Step::DropSlice),
        1 => name.clone().prop_map(Step::DropNode),
        1 => name.prop_map(Step::DropMeshNode),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..40)
}

fn after(steps: &[Step]) -> Cluster {
    let mut cluster = Cluster::default();
    for step in steps {
        step.happen(&mut cluster);
    }
    cluster
}

proptest! {
    #[test]
    fn changes_folded_equal_a_fresh_list(steps in steps()) {
        let mut fold = Fold::default();
        for step in &steps {
            let before = fold.catalog();
            let changed = fold.apply(step.change());
            prop_assert_eq!(changed, fold.catalog() != before, "{:?}", step);
            prop_assert!(!fold.apply(step.change()), "a repetition changes nothing");
        }
        prop_assert_eq!(fold.catalog(), after(&steps).listed());
    }

    #[test]
    fn list_after_any_history_equals_a_fresh_list(history in steps(), now in steps()) {
        let mut fold = Fold::default();
        for step in &history {
            fold.apply(step.change());
        }
        let before = fold.catalog();
        let cluster = after(&now);
        let changed = cluster.list_into(&mut fold);
        prop_assert_eq!(fold.catalog(), cluster.listed());
        prop_assert_eq!(changed, fold.catalog() != before);
        prop_assert!(!cluster.list_into(&mut fold), "the same list changes nothing");
    }

    #[test]
    fn fold_goes_on_from_a_saved_catalog_as_from_its_own(history in steps(), more in steps()) {
        let mut one = Fold::default();
        for step in &history {
            one.apply(step.change());
        }
        let mut other = Fold::from_catalog(one.catalog());
        for step in &more {
            prop_assert_eq!(one.apply(step.change()), other.apply(step.change()));
        }
        prop_assert_eq!(one.catalog(), other.catalog());
    }

    #[test]
    fn catalog_that_somebody_reads_never_changes(history in steps(), more in steps()) {
        let mut fold = Fold::default();
        for step in &history {
            fold.apply(step.change());
        }
        let read = fold.catalog();
        for step in &more {
            fold.apply(step.change());
        }
        after(&more).list_into(&mut fold);
        prop_assert_eq!(read, after(&history).listed());
    }

    #[test]
    fn every_slice_is_found_by_its_service_and_under_no_other(steps in steps()) {
        let mut fold = Fold::default();
        for step in &steps {
            fold.apply(step.change());
        }
        let catalog = fold.catalog();
        let mut found = 0;
        for number in 0..4 {
            let service = service_name(number);
            for slice in catalog.slices_of(&service) {
                prop_assert_eq!(slice.service_name(), service.clone());
                found += 1;
            }
        }
        prop_assert_eq!(found, catalog.slices().count());
        prop_assert_eq!(found, after(&steps).slices.len());
    }
}

#[test]
fn slice_whose_label_changed_leaves_its_old_service() {
    let mut fold = Fold::default();
    fold.apply(Change::Slice(slice(1, 1, 80)));
    assert!(fold.apply(Change::Slice(slice(1, 2, 80))));
    let catalog = fold.catalog();
    assert_eq!(catalog.slices_of(&service_name(1)).count(), 0);
    assert_eq!(catalog.slices_of(&service_name(2)).count(), 1);
}

#[test]
fn list_keeps_the_allocation_of_what_did_not_change() {
    let mut fold = Fold::default();
    fold.replace_services([service(1, 80), service(2, 80)]);
    fold.replace_slices([slice(1, 1, 80)]);
    let before = fold.catalog();
    fold.replace_services([service(1, 80), service(2, 81)]);
    fold.replace_slices([slice(1, 1, 80), slice(2, 1, 80)]);
    let after = fold.catalog();
    let same = |name| {
        let name = service_name(name);
        Arc::ptr_eq(
            before.service(&name).unwrap(),
            after.service(&name).unwrap(),
        )
    };
    assert!(same(1) && !same(2));
    let kept = after.slices().next().unwrap();
    assert!(Arc::ptr_eq(before.slices().next().unwrap(), kept));
}

#[test]
fn gone_object_that_was_never_there_changes_nothing() {
    let mut fold = Fold::default();
    fold.apply(Change::Service(service(1, 80)));
    assert!(!fold.apply(Change::ServiceGone(service_name(2))));
    assert!(!fold.apply(Change::SliceGone(slice_name(2))));
    assert!(!fold.apply(Change::NodeGone(node_name(2))));
    assert!(!fold.apply(Change::MeshNodeGone(node_name(2))));
}

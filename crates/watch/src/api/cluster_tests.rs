//! Whatever a watch goes through, it ends where a fresh list would.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn cluster() -> Cluster {
    Cluster::new(Catalog::default(), Arc::default())
}

fn delivered(value: &Value) -> Delivered {
    serde_json::from_value(value.clone()).unwrap()
}

/// What the server holds of one kind.
type Store = BTreeMap<String, Value>;

fn list(cluster: &mut Cluster, kind: WatchedKind, store: &Store) {
    cluster.take(kind, Event::Init);
    for object in store.values() {
        cluster.take(kind, Event::InitApply(delivered(object)));
    }
    cluster.take(kind, Event::InitDone);
}

fn fresh(kind: WatchedKind, store: &Store) -> Cluster {
    let mut fresh = cluster();
    list(&mut fresh, kind, store);
    fresh
}

/// What happens between server and watch.
#[derive(Clone, Debug)]
enum Happening {
    /// The object of this name is written, and the watch told so.
    Put(u8, Value),
    /// It is deleted, and the watch told so.
    Delete(u8),
    /// The watch is told again what it was told last.
    Repeat,
    /// The watch is lost, things happen unseen, and a new list is read. It is broken off
    /// after so many objects, more things happen, and it is begun anew.
    Relist(Unseen, usize, Unseen),
}

/// Objects that are written or deleted while nobody watches.
type Unseen = Vec<(u8, Option<Value>)>;

fn happen(kind: WatchedKind, unseen: Unseen, store: &mut Store) {
    for (name, object) in unseen {
        match object {
            Some(object) => store.insert(key(name), named(kind, name, object)),
            None => store.remove(&key(name)),
        };
    }
}

fn watched(cluster: &mut Cluster, kind: WatchedKind, happenings: Vec<Happening>) -> Store {
    let mut store = Store::new();
    list(cluster, kind, &store);
    let mut last = None;
    for happening in happenings {
        match happening {
            Happening::Put(name, object) => {
                let object = named(kind, name, object);
                store.insert(key(name), object.clone());
                let event = Event::Apply(delivered(&object));
                last = Some(event.clone());
                cluster.take(kind, event);
            }
            Happening::Delete(name) => {
                if let Some(object) = store.remove(&key(name)) {
                    let event = Event::Delete(delivered(&object));
                    last = Some(event.clone());
                    cluster.take(kind, event);
                }
            }
            Happening::Repeat => {
                if let Some(event) = last.clone() {
                    assert!(!cluster.take(kind, event), "a repetition changes nothing");
                }
            }
            Happening::Relist(unseen, broken_off_after, more_unseen) => {
                happen(kind, unseen, &mut store);
                let before = cluster.catalog();
                cluster.take(kind, Event::Init);
                for object in store.values().take(broken_off_after) {
                    cluster.take(kind, Event::InitApply(delivered(object)));
                }
                assert_eq!(cluster.catalog(), before, "half a list takes no effect");
                happen(kind, more_unseen, &mut store);
                list(cluster, kind, &store);
                last = None;
            }
        }
    }
    store
}

fn key(name: u8) -> String {
    format!("default/{name}")
}

fn named(kind: WatchedKind, name: u8, mut object: Value) -> Value {
    let metadata = &mut object["metadata"];
    metadata["name"] = json!(format!("object-{name}"));
    if !matches!(kind, WatchedKind::Nodes | WatchedKind::MeshNodes) {
        metadata["namespace"] = json!("default");
    }
    object
}

/// Few values of each field, so that equal and clashing ones are frequent; some are wrong.
fn service() -> impl Strategy<Value = Value> {
    let kinds = ["ClusterIP", "NodePort", "ExternalName", "Oddity"];
    let ips = ["10.96.0.1", "10.96.0.2", "None", "", "nonsense"];
    (
        prop::sample::select(kinds.to_vec()),
        prop::sample::select(ips.to_vec()),
        prop::collection::vec((0..3_i64, 79..82_i64), 0..3),
        any::<bool>(),
    )
        .prop_map(|(kind, ip, ports, labelled)| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|(name, port)| json!({"name": format!("p{name}"), "port": port - 79}))
                .collect();
            let labels = if labelled {
                json!({edgemesh_catalog::FILTER_LABEL: "x"})
            } else {
                json!({})
            };
            json!({
                "metadata": {"labels": labels},
                "spec": {"type": kind, "clusterIP": ip, "ports": ports},
            })
        })
}

fn address() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["10.244.1.2", "10.244.1.3", "10.244.2.2", "fd00::2", "x"][..])
}

fn slice() -> impl Strategy<Value = Value> {
    (
        prop::option::of(0..3_u8),
        prop::collection::vec((address(), any::<bool>()), 0..4),
    )
        .prop_map(|(service, endpoints)| {
            let labels = service.map_or_else(
                || json!({}),
                |service| json!({"kubernetes.io/service-name": format!("svc-{service}")}),
            );
            let endpoints: Vec<Value> = endpoints
                .iter()
                .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
                .collect();
            json!({
                "metadata": {"labels": labels}, "addressType": "IPv4",
                "ports": [{"port": 80}], "endpoints": endpoints,
            })
        })
}

fn endpoints() -> impl Strategy<Value = Value> {
    let addresses = || prop::collection::vec(address(), 0..3);
    prop::collection::vec((addresses(), addresses()), 0..3).prop_map(|subsets| {
        let list = |ips: Vec<&str>| -> Vec<Value> {
            ips.into_iter().map(|ip| json!({"ip": ip})).collect()
        };
        let subsets: Vec<Value> = subsets
            .into_iter()
            .map(|(ready, not_ready)| {
                json!({
                    "addresses": list(ready), "notReadyAddresses": list(not_ready),
                    "ports": [{"port": 80}],
                })
            })
            .collect();
        json!({"metadata": {}, "subsets": subsets})
    })
}

fn node() -> impl Strategy<Value = Value> {
    (prop::option::of(0..2_u8), prop::option::of(0..3_u8)).prop_map(|(zone, net)| {
        let labels = zone.map_or_else(
            || json!({}),
            |zone| json!({"topology.kubernetes.io/zone": format!("zone-{zone}")}),
        );
        let cidr = net.map(|net| format!("10.244.{net}.0/24"));
        json!({"metadata": {"labels": labels}, "spec": {"podCIDR": cidr}})
    })
}

fn mesh_node() -> impl Strategy<Value = Value> {
    let key = |byte: u8| edgemesh_catalog::PublicKey::from_bytes([byte; 32]).to_string();
    let keys = prop_oneof![3 => (0..2_u8).prop_map(key), 1 => Just("nonsense".to_owned())];
    let addresses = prop::sample::select(&["203.0.113.7:1", "203.0.113.8:1", "127.0.0.1:1"][..]);
    (keys, prop::collection::vec(addresses, 0..3), 0..9_u8).prop_map(|(key, addresses, second)| {
        json!({
            "metadata": {},
            "spec": {
                "publicKey": key, "addresses": addresses, "bootID": "b",
                "renewTime": format!("2026-01-01T00:00:0{second}.000000Z"),
            },
        })
    })
}

fn happenings(
    object: impl Strategy<Value = Value> + Clone + 'static,
) -> impl Strategy<Value = Vec<Happening>> {
    let unseen = || prop::collection::vec((0..5_u8, prop::option::of(object.clone())), 0..4);
    let relist = (unseen(), 0..5_usize, unseen());
    let happening = prop_oneof![
        4 => (0..5_u8, object.clone()).prop_map(|(name, object)| Happening::Put(name, object)),
        2 => (0..5_u8).prop_map(Happening::Delete),
        1 => Just(Happening::Repeat),
        1 => relist.prop_map(|(unseen, after, more)| Happening::Relist(unseen, after, more)),
    ];
    prop::collection::vec(happening, 0..40)
}

fn ends_where_a_fresh_list_would(kind: WatchedKind, happenings: Vec<Happening>) {
    let mut watching = cluster();
    let store = watched(&mut watching, kind, happenings);
    let fresh = fresh(kind, &store);
    assert_eq!(watching.catalog(), fresh.catalog());
    assert_eq!(
        watching.objects_with_problems(),
        fresh.objects_with_problems()
    );
}

proptest! {
    #[test]
    fn watched_services_end_where_a_fresh_list_would(
        happenings in happenings(service().boxed())
    ) {
        ends_where_a_fresh_list_would(WatchedKind::Services, happenings);
    }

    #[test]
    fn watched_slices_end_where_a_fresh_list_would(happenings in happenings(slice().boxed())) {
        ends_where_a_fresh_list_would(WatchedKind::EndpointSlices, happenings);
    }

    #[test]
    fn watched_endpoints_end_where_a_fresh_list_would(
        happenings in happenings(endpoints().boxed())
    ) {
        ends_where_a_fresh_list_would(WatchedKind::Endpoints, happenings);
    }

    #[test]
    fn watched_nodes_end_where_a_fresh_list_would(happenings in happenings(node().boxed())) {
        ends_where_a_fresh_list_would(WatchedKind::Nodes, happenings);
    }

    #[test]
    fn watched_mesh_nodes_end_where_a_fresh_list_would(
        happenings in happenings(mesh_node().boxed())
    ) {
        ends_where_a_fresh_list_would(WatchedKind::MeshNodes, happenings);
    }

    #[test]
    fn what_was_known_before_leaves_no_trace_after_the_lists(
        known in happenings(slice().boxed()),
        now in happenings(slice().boxed()),
    ) {
        let kind = WatchedKind::EndpointSlices;
        let mut earlier = cluster();
        watched(&mut earlier, kind, known);
        let mut watching = Cluster::new(earlier.catalog(), Arc::default());
        let store = watched(&mut watching, kind, now);
        prop_assert_eq!(watching.catalog(), fresh(kind, &store).catalog());
    }
}

#[test]
fn switching_from_slices_to_endpoints_replaces_all_of_them_at_once() {
    let mut cluster = cluster();
    let slice = json!({
        "metadata": {
            "name": "web-1", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.2"]}],
    });
    list(
        &mut cluster,
        WatchedKind::EndpointSlices,
        &Store::from([("a".to_owned(), slice)]),
    );
    let before = cluster.catalog();
    let endpoints = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": "10.244.1.2"}]}],
    });
    cluster.take(WatchedKind::Endpoints, Event::Init);
    cluster.take(
        WatchedKind::Endpoints,
        Event::InitApply(delivered(&endpoints)),
    );
    assert_eq!(cluster.catalog(), before);
    cluster.take(WatchedKind::Endpoints, Event::InitDone);
    let names: Vec<String> = cluster
        .catalog()
        .slices()
        .map(|slice| slice.name.to_string())
        .collect();
    assert_eq!(names, ["default/endpoints/web/0-ipv4"]);
}

#[test]
fn nodes_of_an_earlier_life_are_dropped_when_nodes_may_not_be_read() {
    let mut earlier = cluster();
    let node = json!({"metadata": {"name": "edge-1"}});
    list(
        &mut earlier,
        WatchedKind::Nodes,
        &Store::from([("a".to_owned(), node)]),
    );
    let mut cluster = Cluster::new(earlier.catalog(), Arc::default());
    assert!(cluster.do_without_nodes());
    assert_eq!(cluster.catalog().nodes().count(), 0);

    assert!(!earlier.do_without_nodes());
    assert_eq!(earlier.catalog().nodes().count(), 1, "read in this life");
}

#[test]
fn renewed_mesh_node_changes_nothing() {
    let renewed = |second: u8| {
        delivered(&json!({
            "metadata": {"name": "edge-1", "resourceVersion": second.to_string()},
            "spec": {
                "publicKey": edgemesh_catalog::PublicKey::from_bytes([7; 32]).to_string(),
                "renewTime": format!("2026-01-01T00:00:0{second}.000000Z"),
            },
        }))
    };
    let mut cluster = cluster();
    assert!(cluster.take(WatchedKind::MeshNodes, Event::Apply(renewed(1))));
    assert!(!cluster.take(WatchedKind::MeshNodes, Event::Apply(renewed(2))));
}

#[test]
fn catalog_is_whole_without_mesh_nodes_only_when_they_are_not_waited_for() {
    let mut cluster = cluster();
    for kind in [
        WatchedKind::Services,
        WatchedKind::EndpointSlices,
        WatchedKind::Nodes,
    ] {
        list(&mut cluster, kind, &Store::new());
    }
    assert!(!cluster.is_complete());
    cluster.wait_no_longer_for_mesh_nodes();
    assert!(cluster.is_complete());
}

#[test]
fn mesh_nodes_of_an_earlier_life_are_dropped_only_when_the_server_has_none() {
    let mut earlier = cluster();
    let key = edgemesh_catalog::PublicKey::from_bytes([7; 32]).to_string();
    let node = json!({"metadata": {"name": "edge-1"}, "spec": {"publicKey": key}});
    let store = Store::from([("a".to_owned(), node)]);
    list(&mut earlier, WatchedKind::MeshNodes, &store);

    let mut cluster = Cluster::new(earlier.catalog(), Arc::default());
    cluster.wait_no_longer_for_mesh_nodes();
    assert_eq!(cluster.catalog().mesh_nodes().count(), 1);
    assert!(cluster.do_without_mesh_nodes());
    assert_eq!(cluster.catalog().mesh_nodes().count(), 0);

    assert!(!earlier.do_without_mesh_nodes());
    assert_eq!(
        earlier.catalog().mesh_nodes().count(),
        1,
        "read in this life"
    );
}

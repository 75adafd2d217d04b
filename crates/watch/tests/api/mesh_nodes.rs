//! MeshNodes are read like everything else, and missed without harm.

use std::time::SystemTime;

use edgemesh_catalog::{Catalog, Change, Fold, MeshNode, NodeName, PublicKey};
use edgemesh_watch::{LastGood, Origin};
use serde_json::json;

use crate::fake_api_server::{FakeApiServer, MESH_NODES, NODES, SERVICES};
use crate::stage::{Watching, mesh_node, mesh_nodes, quick, service, small_cluster};

async fn cluster_with_peers() -> FakeApiServer {
    let server = small_cluster().await;
    server.put(MESH_NODES, mesh_node("cloud-1", 1));
    server.put(MESH_NODES, mesh_node("edge-1", 1));
    server
}

fn last_good() -> LastGood {
    let mut fold = Fold::default();
    fold.apply(Change::MeshNode(MeshNode {
        name: NodeName::new("known"),
        uid: None,
        public_key: PublicKey::from_bytes([7; 32]),
        name_signature: None,
        addresses: Vec::new(),
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "".into(),
        boot_id: "0".into(),
        previous_key: None,
    }));
    LastGood {
        catalog: fold.catalog(),
        saved_at: SystemTime::UNIX_EPOCH,
    }
}

async fn until(watching: &mut Watching, wanted: &[&str]) -> Catalog {
    watching
        .until(|state| state.origin == Origin::Api && mesh_nodes(&state.catalog) == wanted)
        .await
        .catalog
}

#[tokio::test]
async fn first_catalog_has_the_mesh_nodes_and_follows_them() {
    let server = cluster_with_peers().await;
    let mut watching = Watching::server(&server);
    let catalog = watching.until_complete().await;
    assert_eq!(mesh_nodes(&catalog), ["cloud-1 1", "edge-1 1"]);

    server.put(MESH_NODES, mesh_node("edge-1", 2));
    server.delete(MESH_NODES, "", "cloud-1");
    until(&mut watching, &["edge-1 2"]).await;
}

#[tokio::test]
async fn renewal_publishes_nothing() {
    let server = cluster_with_peers().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    let before = watching.counters.published();

    let mut renewed = mesh_node("edge-1", 1);
    renewed["spec"]["renewTime"] = json!("2026-01-02T03:09:05.000000Z");
    server.put(MESH_NODES, renewed);
    // Sent after the renewal by the same watch.
    server.put(MESH_NODES, mesh_node("edge-1", 2));
    until(&mut watching, &["cloud-1 1", "edge-1 2"]).await;
    assert_eq!(watching.counters.published(), before + 1);
}

#[tokio::test]
async fn catalog_is_complete_without_the_crd_which_is_found_when_it_comes() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    let catalog = watching.until_complete().await;
    assert_eq!(mesh_nodes(&catalog), Vec::<String>::new());

    server.put(MESH_NODES, mesh_node("edge-1", 1));
    until(&mut watching, &["edge-1 1"]).await;
}

#[tokio::test]
async fn mesh_nodes_of_an_earlier_life_stay_while_they_may_not_be_read() {
    for (status, wanted) in [
        (403, vec!["known 0"]),
        (503, vec!["known 0"]),
        (404, vec![]),
    ] {
        let server = cluster_with_peers().await;
        server.refuse(MESH_NODES, Some(status));
        let mut watching = Watching::with(&server, Some(last_good()), quick());
        let catalog = watching.until_complete().await;
        assert_eq!(mesh_nodes(&catalog), wanted, "{status}");

        server.refuse(MESH_NODES, None);
        until(&mut watching, &["cloud-1 1", "edge-1 1"]).await;
    }
}

#[tokio::test]
async fn crd_that_is_away_for_a_moment_takes_nobody_away() {
    let server = cluster_with_peers().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;

    server.refuse(MESH_NODES, Some(404));
    server.forget_versions(MESH_NODES);
    server.break_watches();
    server.put(SERVICES, service("db"));
    let catalog = watching.until_services(&["db", "web"]).await;
    assert_eq!(mesh_nodes(&catalog), ["cloud-1 1", "edge-1 1"]);
    server.refuse(MESH_NODES, None);
    server.put(MESH_NODES, mesh_node("edge-1", 2));
    until(&mut watching, &["cloud-1 1", "edge-1 2"]).await;
}

#[tokio::test]
async fn mesh_node_without_a_usable_key_is_refused_and_counted() {
    let server = cluster_with_peers().await;
    let mut foe = mesh_node("foe", 1);
    foe["spec"]["publicKey"] = json!("none");
    server.put(MESH_NODES, foe);
    let mut watching = Watching::server(&server);
    let catalog = watching.until_complete().await;
    assert_eq!(mesh_nodes(&catalog), ["cloud-1 1", "edge-1 1"]);
    assert_eq!(watching.counters.rejected_objects(), 1);
}

#[tokio::test]
async fn catalog_waits_for_nodes_and_not_for_mesh_nodes() {
    let server = cluster_with_peers().await;
    server.refuse(NODES, Some(503));
    server.refuse(MESH_NODES, Some(503));
    let mut watching = Watching::server(&server);
    watching.until_errors(5).await;
    assert!(!watching.states.borrow().complete);
    server.refuse(NODES, None);
    watching.until_complete().await;
}

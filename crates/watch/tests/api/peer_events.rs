//! Refused peers are told as Events, one of each thing for the whole cluster.

use std::time::Duration;

use edgemesh_catalog::NodeName;
use edgemesh_watch::{PeerEvent, PeerEvents};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::fake_api_server::{EVENTS, FakeApiServer, MESH_NODES};
use crate::stage::{Watching, mesh_node, settings_for, small_cluster};

fn refused(node: &str) -> PeerEvent {
    PeerEvent {
        node: NodeName::new(node),
        reason: "DuplicateKey",
        message: format!("{node} has the key of another node"),
    }
}

async fn cluster() -> FakeApiServer {
    let server = small_cluster().await;
    server.offer(EVENTS);
    server.put(MESH_NODES, mesh_node("edge-1", 1));
    server
}

/// Has a node tell of these, and waits until it is done.
async fn tell(server: &FakeApiServer, watching: &Watching, by: &str, events: Vec<PeerEvent>) {
    let (sender, told) = mpsc::channel(16);
    let sink = PeerEvents::to_api(
        settings_for(server),
        NodeName::new(by),
        Duration::ZERO,
        told,
        watching.states.clone(),
    );
    let mut task = JoinSet::new();
    task.spawn(sink.run(CancellationToken::new()));
    for event in events {
        sender.try_send(event).unwrap();
    }
    drop(sender);
    timeout(Duration::from_secs(30), task.join_next())
        .await
        .expect("ends")
        .expect("is there")
        .expect("does not panic");
}

#[tokio::test]
async fn two_nodes_that_see_the_same_make_one_event_about_the_mesh_node() {
    let server = cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    tell(
        &server,
        &watching,
        "edge-2",
        vec![refused("edge-1"), refused("edge-1")],
    )
    .await;
    tell(&server, &watching, "edge-3", vec![refused("edge-1")]).await;

    let writes = server.writes();
    assert_eq!(writes.len(), 2, "each node says it once: {writes:#?}");
    let name = writes[0].body["metadata"]["name"].as_str().unwrap();
    let event = server.object(EVENTS, name).unwrap();
    assert_eq!(event["source"]["host"], "edge-2");
    assert_eq!(event["involvedObject"]["name"], "edge-1");
    assert_eq!(event["reason"], "DuplicateKey");
}

#[tokio::test]
async fn events_that_may_not_be_written_stop_nobody() {
    let server = cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    server.refuse_writes(EVENTS, Some(403));
    tell(
        &server,
        &watching,
        "edge-2",
        vec![refused("edge-1"), refused("x")],
    )
    .await;
    assert_eq!(server.writes().len(), 2);
}

#[tokio::test]
async fn without_an_api_they_are_logged_only() {
    let (sender, told) = mpsc::channel(1);
    sender.try_send(refused("edge-1")).unwrap();
    drop(sender);
    PeerEvents::to_log(told).run(CancellationToken::new()).await;
}

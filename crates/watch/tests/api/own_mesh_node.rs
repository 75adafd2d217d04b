//! What the agent says of itself is in the API, and stays there.

use std::time::{Duration, UNIX_EPOCH};

use edgemesh_catalog::Catalog;
use edgemesh_watch::{Condition, MeshNodePublisher, OwnMeshNode, Publication, PublishTiming};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::fake_api_server::{FakeApiServer, MESH_NODES, Write};
use crate::stage::{Watching, mesh_node, mesh_nodes, own, settings_for, small_cluster};

/// An agent that reads and says who it is.
struct Agent {
    own: watch::Sender<Option<OwnMeshNode>>,
    publication: watch::Receiver<Publication>,
    shutdown: CancellationToken,
    task: JoinSet<()>,
    watching: Watching,
}

fn quick() -> PublishTiming {
    PublishTiming {
        interval: Duration::from_millis(1),
        retry_min: Duration::from_millis(2),
        retry_max: Duration::from_millis(20),
        put_back_min: Duration::from_millis(2),
        put_back_max: Duration::from_millis(20),
        ..PublishTiming::default()
    }
}

impl Agent {
    fn at(server: &FakeApiServer, timing: PublishTiming) -> Self {
        let watching = Watching::server(server);
        let (own, said) = watch::channel(None);
        let (publisher, publication) =
            MeshNodePublisher::to_api(settings_for(server), timing, said, watching.states.clone());
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(publisher.run(shutdown.clone()));
        Self {
            own,
            publication,
            shutdown,
            task,
            watching,
        }
    }

    fn says(&self, boot: u8) {
        self.own.send_replace(Some(OwnMeshNode {
            node: own("edge-1", boot),
            conditions: vec![Condition {
                kind: "Ready".into(),
                status: Some(true),
                reason: "Listening".into(),
                message: "".into(),
                since: UNIX_EPOCH,
            }],
        }));
    }

    async fn until(&mut self, wanted: impl Fn(&Publication) -> bool) -> Publication {
        timeout(Duration::from_secs(30), self.publication.wait_for(wanted))
            .await
            .expect("within 30 s")
            .expect("the publisher goes on")
            .clone()
    }

    /// Waits until peers read this.
    async fn until_seen(&mut self, wanted: &[&str]) {
        self.watching
            .until(|state| mesh_nodes(&state.catalog) == wanted)
            .await;
    }
}

async fn server() -> FakeApiServer {
    let server = small_cluster().await;
    server.offer(MESH_NODES);
    server
}

fn written(writes: &[Write], target: &str) -> Vec<Write> {
    let of_target = |write: &&Write| write.target.starts_with(&format!("{target}?"));
    writes.iter().filter(of_target).cloned().collect()
}

fn spec_writes(server: &FakeApiServer) -> Vec<Write> {
    written(&server.writes(), &format!("{MESH_NODES}/edge-1"))
}

#[tokio::test]
async fn first_word_is_applied_with_its_status_and_read_by_peers() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    agent.until(|seen| seen.written_at.is_some()).await;

    let writes = server.writes();
    let spec = &written(&writes, &format!("{MESH_NODES}/edge-1"))[0];
    assert_eq!(spec.content_type, "application/apply-patch+yaml");
    assert!(
        spec.target
            .ends_with("?fieldManager=edgemesh-agent&force=true")
    );
    assert!(spec.body["spec"]["renewTime"].is_string());
    let status = &written(&writes, &format!("{MESH_NODES}/edge-1/status"))[0];
    assert_eq!(status.body["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(status.body.get("spec"), None);
}

#[tokio::test]
async fn nothing_is_written_before_the_agent_says_who_it_is() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    agent.watching.until_complete().await;
    assert!(server.writes().is_empty());
}

#[tokio::test]
async fn each_change_reaches_the_peers_and_the_last_one_stays() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    for boot in 1..=50 {
        agent.says(boot);
        tokio::task::yield_now().await;
    }
    agent.until_seen(&["edge-1 50"]).await;
    assert_eq!(
        agent
            .until(|seen| seen.written_at.is_some())
            .await
            .overwritten,
        0
    );
}

#[tokio::test]
async fn what_others_change_or_remove_is_put_back() {
    let server = server().await;
    let timing = PublishTiming {
        settle: Duration::from_millis(20),
        ..quick()
    };
    let mut agent = Agent::at(&server, timing);
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    agent.until(|seen| seen.written_at.is_some()).await;

    server.put(MESH_NODES, mesh_node("edge-1", 99));
    agent.until(|seen| seen.overwritten > 0).await;
    agent.until_seen(&["edge-1 1"]).await;
    let uid = |catalog: &Catalog| catalog.mesh_nodes().next().and_then(|n| n.uid.clone());
    let before = uid(&agent.watching.states.borrow().catalog);

    server.delete(MESH_NODES, "", "edge-1");
    agent
        .watching
        .until(|state| {
            let now = uid(&state.catalog);
            now.is_some() && now != before
        })
        .await;
}

#[tokio::test]
async fn renewal_tells_the_time_and_wakes_nobody() {
    let server = server().await;
    let timing = PublishTiming {
        renewal: Duration::from_millis(10),
        ..quick()
    };
    let mut agent = Agent::at(&server, timing);
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    let published = agent.watching.counters.published();
    let renewals = async {
        while spec_writes(&server).len() < 5 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), renewals)
        .await
        .expect("renewals");
    assert_eq!(agent.watching.counters.published(), published);
    let status = written(&server.writes(), &format!("{MESH_NODES}/edge-1/status"));
    assert_eq!(status.len(), 1, "the status did not change");
    assert_eq!(agent.publication.borrow().overwritten, 0);
}

#[tokio::test]
async fn refusal_says_what_to_do_and_is_tried_again() {
    for (status, advice) in [
        (404, "edgemesh-agent crd | kubectl apply"),
        (403, "ClusterRole"),
        (422, "edgemesh-agent crd"),
    ] {
        let server = server().await;
        server.refuse_writes(MESH_NODES, Some(status));
        let mut agent = Agent::at(&server, quick());
        agent.says(1);
        let failed = agent.until(|seen| seen.trouble.is_some()).await;
        let said = failed.trouble.unwrap();
        assert!(said.contains(advice), "{said}");
        assert_eq!(failed.written_at, None);

        server.refuse_writes(MESH_NODES, None);
        agent.until(|seen| seen.trouble.is_none()).await;
        agent.until_seen(&["edge-1 1"]).await;
    }
}

#[tokio::test]
async fn status_that_may_not_be_written_keeps_no_peer_from_reading_the_rest() {
    let server = server().await;
    server.refuse_status_writes(MESH_NODES, Some(403));
    let mut agent = Agent::at(&server, quick());
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    let seen = agent.until(|seen| seen.trouble.is_some()).await;
    assert!(seen.written_at.is_some(), "{seen:?}");
    server.refuse_status_writes(MESH_NODES, None);
    agent.until(|seen| seen.trouble.is_none()).await;
    let object = server.object(MESH_NODES, "edge-1").unwrap();
    assert_eq!(object["status"]["conditions"][0]["type"], "Ready");
}

#[tokio::test]
async fn change_during_an_outage_is_published_after_it() {
    let mut server = server().await;
    let mut agent = Agent::at(&server, quick());
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;

    server.stop().await;
    agent.says(2);
    agent.until(|seen| seen.trouble.is_some()).await;
    server.resume().await;
    agent.until_seen(&["edge-1 2"]).await;
    agent.until(|seen| seen.trouble.is_none()).await;
}

#[tokio::test]
async fn what_peers_would_refuse_is_not_published_and_no_reason_to_write_again() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    let mut node = own("edge-1", 1);
    node.addresses.push("127.0.0.1:20006".parse().unwrap());
    agent.own.send_replace(Some(OwnMeshNode {
        node,
        conditions: Vec::new(),
    }));
    agent.until_seen(&["edge-1 1"]).await;
    let spec: Value = server.object(MESH_NODES, "edge-1").unwrap()["spec"].clone();
    assert_eq!(spec["addresses"], json!(["203.0.113.7:20006"]));
    assert_eq!(agent.watching.counters.rejected_objects(), 0);
}

#[tokio::test]
async fn name_that_no_node_can_have_is_not_published() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    agent.own.send_replace(Some(OwnMeshNode {
        node: own("../services/web", 1),
        conditions: Vec::new(),
    }));
    let failed = agent.until(|seen| seen.trouble.is_some()).await;
    let said = failed.trouble.unwrap();
    assert!(said.contains("metadata.name"), "{said}");
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    let own = format!("{MESH_NODES}/edge-1");
    let writes = server.writes();
    assert!(writes.iter().all(|write| write.target.starts_with(&own)));
}

#[tokio::test]
async fn shutdown_ends_the_task_and_leaves_the_mesh_node() {
    let server = server().await;
    let mut agent = Agent::at(&server, quick());
    agent.says(1);
    agent.until_seen(&["edge-1 1"]).await;
    agent.shutdown.cancel();
    let ended = timeout(Duration::from_secs(30), agent.task.join_next());
    ended
        .await
        .expect("ends")
        .expect("is there")
        .expect("does not panic");
    assert!(server.object(MESH_NODES, "edge-1").is_some());
}

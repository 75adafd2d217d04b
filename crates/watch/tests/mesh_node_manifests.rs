//! Agents that share a manifests directory know each other by the files in it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers outside of #[test] too"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{Catalog, MeshNode, NodeName, PublicKey};
use edgemesh_watch::{
    Counters, ManifestsSource, MeshNodePublisher, OwnMeshNode, Publication, PublishTiming,
    SourceState,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// An agent that reads the directory and says who it is. It stops when dropped.
struct Agent {
    name: &'static str,
    own: watch::Sender<Option<OwnMeshNode>>,
    publication: watch::Receiver<Publication>,
    states: watch::Receiver<SourceState>,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Agent {
    fn new(name: &'static str, reads: &Path, writes: &Path) -> Self {
        let counters = Arc::new(Counters::default());
        let (source, states) = ManifestsSource::new(reads.to_owned(), counters.clone()).unwrap();
        let (own, said) = watch::channel(None);
        let timing = PublishTiming {
            interval: Duration::from_millis(1),
            retry_min: Duration::from_millis(2),
            retry_max: Duration::from_millis(20),
            put_back_min: Duration::from_millis(2),
            put_back_max: Duration::from_millis(20),
            ..PublishTiming::default()
        };
        let (publisher, publication) =
            MeshNodePublisher::to_manifests(writes.to_owned(), timing, said, states.clone());
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(source.run(shutdown.clone()));
        tasks.spawn(publisher.run(shutdown.clone()));
        let agent = Self {
            name,
            own,
            publication,
            states,
            counters,
            shutdown,
            tasks,
        };
        agent.says("1");
        agent
    }

    fn says(&self, boot: &str) {
        self.own.send_replace(Some(OwnMeshNode {
            node: MeshNode {
                name: NodeName::new(self.name),
                uid: None,
                public_key: PublicKey::from_bytes([7; 32]),
                name_signature: None,
                addresses: vec!["203.0.113.7:20006".parse().unwrap()],
                relay_url: None,
                relay_server: None,
                pod_cidrs: Vec::new(),
                probe: None,
                version: "1".into(),
                boot_id: boot.into(),
                previous_key: None,
            },
            conditions: Vec::new(),
        }));
    }

    async fn until_knows(&mut self, wanted: &[&str]) {
        let knows = self
            .states
            .wait_for(|state| known(&state.catalog) == wanted);
        timeout(Duration::from_secs(30), knows)
            .await
            .unwrap_or_else(|_| panic!("{} does not know {wanted:?} within 30 s", self.name))
            .unwrap();
    }

    async fn until(&mut self, wanted: impl Fn(&Publication) -> bool) -> Publication {
        timeout(Duration::from_secs(30), self.publication.wait_for(wanted))
            .await
            .expect("within 30 s")
            .expect("the publisher goes on")
            .clone()
    }
}

fn known(catalog: &Catalog) -> Vec<String> {
    catalog
        .mesh_nodes()
        .map(|node| format!("{} {}", node.name, node.boot_id))
        .collect()
}

#[tokio::test]
async fn agents_that_share_a_directory_know_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut edge = Agent::new("edge-1", dir.path(), dir.path());
    let mut cloud = Agent::new("cloud-1", dir.path(), dir.path());
    for agent in [&mut edge, &mut cloud] {
        agent.until_knows(&["cloud-1 1", "edge-1 1"]).await;
    }
    edge.says("2");
    cloud.until_knows(&["cloud-1 1", "edge-1 2"]).await;
    // All that there was to publish to others is what the files say, and no temporary file is
    // left over.
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["meshnode-cloud-1.yaml", "meshnode-edge-1.yaml"]);
    assert_eq!(edge.publication.borrow().overwritten, 0);
    assert_eq!(edge.counters.manifest_errors(), 0);
}

#[tokio::test]
async fn file_that_others_change_or_remove_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meshnode-edge-1.yaml");
    let mut edge = Agent::new("edge-1", dir.path(), dir.path());
    edge.until_knows(&["edge-1 1"]).await;
    edge.until(|seen| seen.written_at.is_some()).await;
    let right = fs::read_to_string(&path).unwrap();

    fs::write(&path, right.replace("203.0.113.7", "203.0.113.8")).unwrap();
    edge.until(|seen| seen.overwritten > 0).await;
    let address = "203.0.113.7:20006".parse().unwrap();
    let is_back = edge.states.wait_for(|state| {
        let node = state.catalog.mesh_node(&NodeName::new("edge-1"));
        node.is_some_and(|node| node.addresses == [address])
    });
    timeout(Duration::from_secs(30), is_back)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), right);
}

#[tokio::test]
async fn restart_that_says_the_same_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Agent::new("edge-1", dir.path(), dir.path());
    first.until(|seen| seen.written_at.is_some()).await;
    first.shutdown.cancel();
    while let Some(ended) = first.tasks.join_next().await {
        ended.unwrap();
    }
    let path = dir.path().join("meshnode-edge-1.yaml");
    let before = fs::metadata(&path).expect("it stays").modified().unwrap();
    let mut second = Agent::new("edge-1", dir.path(), dir.path());
    second.until(|seen| seen.written_at.is_some()).await;
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

#[tokio::test]
async fn directory_that_cannot_be_written_is_said_and_tried_again() {
    let reads = tempfile::tempdir().unwrap();
    let writes = reads.path().join("not-there-yet");
    let mut edge = Agent::new("edge-1", reads.path(), &writes);
    let failed = edge.until(|seen| seen.trouble.is_some()).await;
    let said = failed.trouble.unwrap();
    assert!(
        said.contains("not-there-yet/meshnode-edge-1.yaml"),
        "{said}"
    );
    assert!(said.contains("no tunnel"), "{said}");

    fs::create_dir(&writes).unwrap();
    edge.until(|seen| seen.trouble.is_none() && seen.written_at.is_some())
        .await;
}

//! The manifests source and what operators do to its directory.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers outside of #[test] too"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{Catalog, NodeName, ObjectName};
use edgemesh_watch::{Counters, ManifestsError, ManifestsSource, Origin, SourceState};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A manifests source at work. It stops when dropped.
struct Watching {
    states: watch::Receiver<SourceState>,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    task: JoinSet<()>,
}

impl Watching {
    fn directory(path: &Path) -> Self {
        let counters = Arc::new(Counters::default());
        let (source, states) = ManifestsSource::new(path.to_owned(), counters.clone()).unwrap();
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(source.run(shutdown.clone()));
        Self {
            states,
            counters,
            shutdown,
            task,
        }
    }

    async fn until(&mut self, wanted: impl Fn(&SourceState) -> bool) -> SourceState {
        // Well below the slow poll, which is not what is meant to find the change.
        let seen = timeout(Duration::from_secs(20), self.states.wait_for(wanted))
            .await
            .map(|state| state.unwrap().clone());
        seen.unwrap_or_else(|_| panic!("not within 20 s; last: {:#?}", *self.states.borrow()))
    }

    async fn until_nodes(&mut self, names: &[&str]) -> SourceState {
        self.until(|state| state.complete && nodes(&state.catalog) == names)
            .await
    }
}

fn nodes(catalog: &Catalog) -> Vec<String> {
    catalog.nodes().map(|node| node.name.to_string()).collect()
}

fn zone(catalog: &Catalog, name: &str) -> Option<String> {
    let zone = catalog.node(&NodeName::new(name))?.zone.as_deref()?;
    Some(zone.to_owned())
}

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n")
}

fn node_in(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  \
         labels: {{topology.kubernetes.io/zone: {zone}}}\n---\n"
    )
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn directory_is_read_whole_before_anything_is_published() {
    let dir = directory();
    fs::write(dir.path().join("a.yaml"), node("a")).unwrap();
    fs::write(dir.path().join("b.yml"), node("b") + &node("b2")).unwrap();
    let json = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}}"#;
    fs::write(dir.path().join("c.json"), json).unwrap();
    fs::write(dir.path().join("notes.txt"), "not a manifest").unwrap();
    fs::write(dir.path().join(".hidden.yaml"), node("hidden")).unwrap();
    fs::create_dir(dir.path().join("below.yaml")).unwrap();

    let mut watching = Watching::directory(dir.path());
    let state = watching.until(|state| state.complete).await;
    assert_eq!(nodes(&state.catalog), ["a", "b", "b2", "c"]);
    assert_eq!(state.origin, Origin::Manifests);
    assert_eq!(state.problems.files, 0);
}

#[tokio::test]
async fn empty_directory_is_a_complete_catalog() {
    let dir = directory();
    let mut watching = Watching::directory(dir.path());
    let state = watching.until(|state| state.complete).await;
    assert!(state.catalog.is_empty());
}

#[test]
fn missing_directory_is_an_error_that_says_what_to_do() {
    let Err(error) = ManifestsSource::new("/no/such/directory".into(), Arc::default()) else {
        panic!("an error expected");
    };
    assert!(matches!(error, ManifestsError::Directory { .. }));
    assert_eq!(
        error.to_string(),
        "cannot read the manifests directory /no/such/directory; create it or correct --manifests"
    );
}

#[tokio::test]
async fn files_that_are_added_changed_renamed_replaced_and_deleted_take_effect() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), node_in("a", "z1")).unwrap();
    let mut watching = Watching::directory(dir.path());
    watching.until_nodes(&["a"]).await;

    fs::write(at("b.yaml"), node("b")).unwrap();
    watching.until_nodes(&["a", "b"]).await;

    fs::write(at("a.yaml"), node_in("a", "z2")).unwrap();
    watching
        .until(|state| zone(&state.catalog, "a").as_deref() == Some("z2"))
        .await;

    fs::write(at("new.tmp"), node_in("a", "z3")).unwrap();
    fs::rename(at("new.tmp"), at("a.yaml")).unwrap();
    watching
        .until(|state| zone(&state.catalog, "a").as_deref() == Some("z3"))
        .await;

    fs::rename(at("b.yaml"), at("b.disabled")).unwrap();
    watching.until_nodes(&["a"]).await;
    fs::rename(at("b.disabled"), at("c.yaml")).unwrap();
    watching.until_nodes(&["a", "b"]).await;

    fs::remove_file(at("a.yaml")).unwrap();
    watching.until_nodes(&["b"]).await;
}

#[tokio::test]
async fn configmap_volume_is_followed_through_its_swapped_link() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let version = |number: u8, zone: &str| {
        let version = at(&format!("..{number}"));
        fs::create_dir(&version).unwrap();
        fs::write(version.join("a.yaml"), node_in("a", zone)).unwrap();
        version
    };
    version(1, "z1");
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut watching = Watching::directory(dir.path());
    watching.until_nodes(&["a"]).await;

    version(2, "z2");
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    watching
        .until(|state| zone(&state.catalog, "a").as_deref() == Some("z2"))
        .await;
}

#[tokio::test]
async fn bad_file_leaves_what_it_said_before_in_force_until_it_is_right_again() {
    let dir = directory();
    let file = dir.path().join("a.yaml");
    fs::write(&file, node("a") + &node("b")).unwrap();
    let mut watching = Watching::directory(dir.path());
    watching.until_nodes(&["a", "b"]).await;

    fs::write(&file, node("c") + "kind: [oops\n").unwrap();
    let state = watching.until(|state| state.problems.files == 1).await;
    assert_eq!(nodes(&state.catalog), ["a", "b"]);
    assert_eq!(watching.counters.manifest_errors(), 1);

    fs::write(&file, node("c")).unwrap();
    let state = watching.until_nodes(&["c"]).await;
    assert_eq!(state.problems.files, 0);
}

#[tokio::test]
async fn bad_file_does_not_keep_others_from_changing() {
    let dir = directory();
    fs::write(dir.path().join("bad.yaml"), "kind: [oops\n").unwrap();
    let mut watching = Watching::directory(dir.path());
    watching.until(|state| state.problems.files == 1).await;
    fs::write(dir.path().join("good.yaml"), node("a")).unwrap();
    watching.until_nodes(&["a"]).await;
}

#[tokio::test]
async fn usable_part_of_a_file_that_was_never_right_is_in_force() {
    let dir = directory();
    let file = dir.path().join("a.yaml");
    fs::write(&file, node("a") + "kind: [oops\n").unwrap();
    let mut watching = Watching::directory(dir.path());
    let state = watching.until_nodes(&["a"]).await;
    assert_eq!(state.problems.files, 1);
    fs::write(&file, node("a") + &node("b") + "kind: [oops\n").unwrap();
    watching.until_nodes(&["a", "b"]).await;
}

#[tokio::test]
async fn directory_that_goes_away_and_comes_back_is_followed() {
    let parent = directory();
    let dir = parent.path().join("m");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), node("a")).unwrap();
    let mut watching = Watching::directory(&dir);
    watching.until_nodes(&["a"]).await;

    let aside = parent.path().join("aside");
    fs::rename(&dir, &aside).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("b.yaml"), node("b")).unwrap();
    watching.until_nodes(&["b"]).await;
    fs::write(dir.join("c.yaml"), node("c")).unwrap();
    watching.until_nodes(&["b", "c"]).await;

    fs::remove_dir_all(&dir).unwrap();
    // Its files went first and were seen to go; what counts is that it is found again.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("d.yaml"), node("d")).unwrap();
    watching
        .until(|state| nodes(&state.catalog).contains(&"d".to_owned()))
        .await;
}

#[tokio::test]
async fn shutdown_ends_the_source() {
    let dir = directory();
    let mut watching = Watching::directory(dir.path());
    watching.until(|state| state.complete).await;
    watching.shutdown.cancel();
    timeout(Duration::from_secs(20), watching.task.join_next())
        .await
        .expect("ends")
        .expect("is there")
        .expect("does not panic");
}

#[tokio::test]
async fn ten_thousand_services_and_one_more() {
    let dir = directory();
    let mut text = String::new();
    for number in 0..10_000 {
        let (high, low) = (number / 250, number % 250 + 1);
        text.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: svc-{number}}}\nspec:\n  \
             clusterIP: 10.96.{high}.{low}\n  ports: [{{port: 80}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: svc-{number}-1\n  labels: {{kubernetes.io/service-name: svc-{number}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\n\
             endpoints: [{{addresses: [10.244.{high}.{low}]}}]\n---\n"
        ));
    }
    fs::write(dir.path().join("all.yaml"), text).unwrap();
    let mut watching = Watching::directory(dir.path());
    let state = watching.until(|state| state.complete).await;
    assert_eq!(state.catalog.services().count(), 10_000);
    assert_eq!(state.catalog.slices().count(), 10_000);

    let one = "apiVersion: v1\nkind: Service\nmetadata: {name: one}\nspec: {ports: [{port: 1}]}\n";
    fs::write(dir.path().join("one.yaml"), one).unwrap();
    let one = ObjectName::new("default", "one");
    watching
        .until(|state| state.catalog.service(&one).is_some())
        .await;
}

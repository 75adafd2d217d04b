//! The API source against an API server in this process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers outside of #[test] too"
)]

mod fake_api_server;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgemesh_catalog::{Catalog, ObjectName};
use edgemesh_watch::{
    ApiSettings, ApiSource, ApiTiming, ApiWay, Counters, LastGood, Origin, SourceState,
};
use fake_api_server::{ENDPOINTS, FakeApiServer, NODES, SERVICES, SLICES};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// An API source at work. It stops when dropped.
struct Watching {
    states: watch::Receiver<SourceState>,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    task: JoinSet<()>,
}

impl Watching {
    fn server(server: &FakeApiServer) -> Self {
        Self::with(server, None, quick())
    }

    fn with(server: &FakeApiServer, last_good: Option<LastGood>, timing: ApiTiming) -> Self {
        let settings = ApiSettings {
            way: ApiWay::Master {
                url: server.url(),
                kubeconfig: None,
            },
            qps: 0.0,
            burst: 1,
            socket_mark: Some(0x2000),
            user_agent: "edgemesh-test/1".to_owned(),
        };
        let counters = Arc::new(Counters::default());
        let (source, states) = ApiSource::new(settings, timing, last_good, counters.clone());
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

    /// Waits for a state.
    async fn until(&mut self, wanted: impl Fn(&SourceState) -> bool) -> SourceState {
        let seen = timeout(Duration::from_secs(30), self.states.wait_for(wanted))
            .await
            .map(|state| state.unwrap().clone());
        seen.unwrap_or_else(|_| panic!("not within 30 s; last: {:#?}", *self.states.borrow()))
    }

    async fn until_complete(&mut self) -> Catalog {
        self.until(|state| state.complete && state.origin == Origin::Api)
            .await
            .catalog
    }

    async fn until_services(&mut self, names: &[&str]) -> Catalog {
        self.until(|state| state.origin == Origin::Api && services(&state.catalog) == names)
            .await
            .catalog
    }
}

fn quick() -> ApiTiming {
    ApiTiming {
        coalesce: Duration::from_millis(1),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..ApiTiming::default()
    }
}

fn service(name: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "managedFields": [{"manager": "me"}]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
    })
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "metadata": {
            "namespace": "default", "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    })
}

fn endpoints(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": "default", "name": name},
        "subsets": [{"addresses": addresses, "ports": [{"name": "http", "port": 8080}]}],
    })
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"images": [{"names": ["huge"]}]},
    })
}

/// A server with one Service, its slice and a node.
async fn small_cluster() -> FakeApiServer {
    let server = FakeApiServer::start().await;
    server.put(SERVICES, service("web"));
    server.put(SLICES, slice("web-1", "web", &["10.244.1.2"]));
    server.put(NODES, node("edge-1"));
    server
}

fn services(catalog: &Catalog) -> Vec<String> {
    catalog
        .services()
        .map(|service| service.name.name().to_owned())
        .collect()
}

fn addresses(catalog: &Catalog, service: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = catalog
        .slices_of(&ObjectName::new("default", service))
        .flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address))
        .collect();
    addresses.sort();
    addresses
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn catalog_is_published_when_all_lists_are_complete_and_follows_every_change() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);

    let catalog = watching.until_complete().await;
    assert_eq!(services(&catalog), ["web"]);
    assert_eq!(addresses(&catalog, "web"), ips(&["10.244.1.2"]));
    assert_eq!(catalog.nodes().count(), 1);

    server.put(SERVICES, service("db"));
    watching.until_services(&["db", "web"]).await;
    server.delete(SERVICES, "default", "web");
    watching.until_services(&["db"]).await;
    server.put(SLICES, slice("web-1", "web", &["10.244.1.3"]));
    watching
        .until(|state| addresses(&state.catalog, "web") == ips(&["10.244.1.3"]))
        .await;
    assert!(watching.counters.last_event().is_some());
    assert!(watching.counters.failing_since().is_none());
}

#[tokio::test]
async fn nothing_is_complete_while_one_list_is_missing() {
    let server = small_cluster().await;
    server.refuse(SERVICES, Some(503));
    let mut watching = Watching::server(&server);
    let counters = watching.counters.clone();
    // Slices and nodes have long been listed when Services failed for the fifth time.
    timeout(Duration::from_secs(30), async {
        while counters.watch_errors() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(!watching.states.borrow().complete);

    server.refuse(SERVICES, None);
    watching.until_services(&["web"]).await;
}

#[tokio::test]
async fn long_lists_are_read_in_pages() {
    let server = FakeApiServer::start().await;
    for number in 0..1200 {
        server.put(SERVICES, service(&format!("svc-{number:04}")));
    }
    server.put(SLICES, slice("web-1", "web", &["10.244.1.2"]));
    server.put(NODES, node("edge-1"));
    let mut watching = Watching::server(&server);
    assert_eq!(watching.until_complete().await.services().count(), 1200);
    let pages = server
        .requests()
        .iter()
        .filter(|request| request.starts_with(SERVICES) && request.contains("limit=500"))
        .count();
    assert_eq!(pages, 3);
    assert!(server.requests()[0].ends_with(" edgemesh-test/1"));
}

#[tokio::test]
async fn broken_watch_goes_on_where_it_was_without_a_new_list() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    server.put(SERVICES, service("db"));
    watching.until_services(&["db", "web"]).await;

    server.break_watches();
    server.put(SERVICES, service("new"));
    watching.until_services(&["db", "new", "web"]).await;
    assert_eq!(server.lists(SERVICES), 1);
}

#[tokio::test]
async fn forgotten_version_means_a_new_list_and_what_it_omits_is_gone() {
    for by_status in [false, true] {
        let server = small_cluster().await;
        if by_status {
            server.forget_by_status(SERVICES);
        }
        server.put(SERVICES, service("old"));
        let mut watching = Watching::server(&server);
        watching.until_services(&["old", "web"]).await;

        server.delete_unseen(SERVICES, "default", "old");
        server.forget_versions(SERVICES);
        server.break_watches();
        watching.until_services(&["web"]).await;
        server.put(SERVICES, service("new"));
        watching.until_services(&["new", "web"]).await;
        assert!(server.lists(SERVICES) >= 2, "by status: {by_status}");
    }
}

#[tokio::test]
async fn bookmark_saves_a_new_list() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;

    // One piece of the answer holds both, so that who has seen the Service has the bookmark.
    server.put_with_bookmark(SERVICES, service("db"));
    watching.until_services(&["db", "web"]).await;
    server.forget_versions(SERVICES);
    server.break_watches();
    server.put(SERVICES, service("new"));
    watching.until_services(&["db", "new", "web"]).await;
    assert_eq!(server.lists(SERVICES), 1);
}

#[tokio::test]
async fn repeated_event_is_not_published() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    server.put(SERVICES, service("db"));
    watching.until_services(&["db", "web"]).await;
    let published = watching.counters.published();

    server.repeat_last_event(SERVICES);
    server.put(SERVICES, service("new"));
    watching.until_services(&["db", "new", "web"]).await;
    assert_eq!(watching.counters.published(), published + 1);
}

#[tokio::test]
async fn burst_of_changes_is_published_a_few_times() {
    let server = small_cluster().await;
    let timing = ApiTiming {
        coalesce: Duration::from_millis(300),
        ..quick()
    };
    let mut watching = Watching::with(&server, None, timing);
    watching.until_complete().await;
    for number in 0..400 {
        server.put(SERVICES, service(&format!("svc-{number}")));
    }
    watching
        .until(|state| state.catalog.services().count() == 401)
        .await;
    let published = watching.counters.published();
    assert!(published < 40, "{published} for 400 changes");
}

#[tokio::test]
async fn slice_that_moves_to_another_service_leaves_nothing_behind() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    server.put(SLICES, slice("web-1", "db", &["10.244.1.2"]));
    let catalog = watching
        .until(|state| !addresses(&state.catalog, "db").is_empty())
        .await
        .catalog;
    assert!(addresses(&catalog, "web").is_empty());

    let mut unlabelled = slice("web-1", "db", &["10.244.1.2"]);
    unlabelled["metadata"]["labels"] = json!({});
    server.put(SLICES, unlabelled);
    watching
        .until(|state| state.catalog.slices().count() == 0)
        .await;
}

#[tokio::test]
async fn server_without_slices_is_read_by_its_endpoints() {
    let server = FakeApiServer::start().await;
    server.put(SERVICES, service("web"));
    server.put(ENDPOINTS, endpoints("web", &["10.244.1.2", "fd00::2"]));
    server.put(NODES, node("edge-1"));
    let mut watching = Watching::server(&server);
    let catalog = watching.until_complete().await;
    assert_eq!(addresses(&catalog, "web"), ips(&["10.244.1.2", "fd00::2"]));

    server.put(ENDPOINTS, endpoints("web", &["10.244.1.3"]));
    let catalog = watching
        .until(|state| addresses(&state.catalog, "web") == ips(&["10.244.1.3"]))
        .await
        .catalog;
    assert_eq!(catalog.slices().count(), 1, "the IPv6 part is gone");
    server.delete(ENDPOINTS, "default", "web");
    watching
        .until(|state| state.catalog.slices().count() == 0)
        .await;
}

#[tokio::test]
async fn upgraded_server_is_switched_to_slices_without_losing_endpoints() {
    let server = FakeApiServer::start().await;
    server.put(SERVICES, service("web"));
    server.put(ENDPOINTS, endpoints("web", &["10.244.1.2"]));
    server.put(NODES, node("edge-1"));
    let timing = ApiTiming {
        look_again: Duration::from_millis(20),
        ..quick()
    };
    let mut watching = Watching::with(&server, None, timing);
    watching.until_complete().await;

    server.put(SLICES, slice("web-1", "web", &["10.244.1.2"]));
    loop {
        let state = watching.until(|_| true).await;
        assert_eq!(addresses(&state.catalog, "web"), ips(&["10.244.1.2"]));
        let slices: Vec<_> = state.catalog.slices().map(|s| s.name.to_string()).collect();
        if slices == ["default/web-1"] {
            break;
        }
        watching.states.changed().await.unwrap();
    }
    server.put(SLICES, slice("web-1", "web", &["10.244.1.9"]));
    watching
        .until(|state| addresses(&state.catalog, "web") == ips(&["10.244.1.9"]))
        .await;
}

#[tokio::test]
async fn downgraded_server_is_switched_to_endpoints() {
    let server = small_cluster().await;
    server.put(ENDPOINTS, endpoints("web", &["10.244.1.2"]));
    let mut watching = Watching::server(&server);
    watching.until_complete().await;

    server.refuse(SLICES, Some(404));
    server.break_watches();
    server.put(ENDPOINTS, endpoints("web", &["10.244.1.3"]));
    watching
        .until(|state| addresses(&state.catalog, "web") == ips(&["10.244.1.3"]))
        .await;
}

#[tokio::test]
async fn slices_that_may_not_be_read_are_replaced_by_endpoints() {
    let server = small_cluster().await;
    server.refuse(SLICES, Some(403));
    server.put(ENDPOINTS, endpoints("web", &["10.244.1.3"]));
    let mut watching = Watching::server(&server);
    let catalog = watching.until_complete().await;
    assert_eq!(addresses(&catalog, "web"), ips(&["10.244.1.3"]));
}

#[tokio::test]
async fn catalog_is_complete_without_nodes_where_they_may_not_be_read() {
    for status in [403, 404] {
        let server = small_cluster().await;
        server.refuse(NODES, Some(status));
        let timing = ApiTiming {
            look_again: Duration::from_millis(20),
            ..quick()
        };
        let mut watching = Watching::with(&server, None, timing);
        let catalog = watching.until_complete().await;
        assert_eq!(catalog.nodes().count(), 0);

        server.refuse(NODES, None);
        watching
            .until(|state| state.catalog.nodes().count() == 1)
            .await;
    }
}

fn last_good(catalog: Catalog) -> Option<LastGood> {
    Some(LastGood {
        catalog,
        saved_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
    })
}

/// What an agent that ran before would have saved of the server.
async fn saved_from(server: &FakeApiServer) -> Catalog {
    Watching::server(server).until_complete().await
}

#[tokio::test]
async fn unreachable_server_at_start_means_the_last_good_catalog_at_once() {
    let mut server = small_cluster().await;
    let saved = saved_from(&server).await;
    server.stop().await;

    let mut watching = Watching::with(&server, last_good(saved.clone()), quick());
    let state = watching.until(|state| state.complete).await;
    assert!(matches!(state.origin, Origin::LastGood { .. }));
    assert_eq!(state.catalog, saved);
    assert!(watching.counters.failing_since().is_some());

    server.delete_unseen(SERVICES, "default", "web");
    server.put(SERVICES, service("new"));
    server.resume().await;
    watching.until_services(&["new"]).await;
    assert!(watching.counters.failing_since().is_none());
}

#[tokio::test]
async fn half_an_answer_does_not_replace_the_last_good_catalog() {
    let server = small_cluster().await;
    let saved = saved_from(&server).await;
    server.put(SERVICES, service("new"));
    server.refuse(SLICES, Some(500));

    let mut watching = Watching::with(&server, last_good(saved.clone()), quick());
    let state = watching.until(|state| state.complete).await;
    assert!(matches!(state.origin, Origin::LastGood { .. }));
    server.refuse(SLICES, None);
    watching.until_services(&["new", "web"]).await;
}

#[tokio::test]
async fn reachable_server_is_waited_for_instead_of_serving_the_last_good_catalog() {
    let server = small_cluster().await;
    let saved = saved_from(&server).await;
    server.put(SERVICES, service("new"));
    let timing = ApiTiming {
        patience: Duration::from_secs(600),
        ..quick()
    };
    let mut watching = Watching::with(&server, last_good(saved), timing);
    let state = watching.until(|state| state.complete).await;
    assert_eq!(state.origin, Origin::Api);
    assert_eq!(services(&state.catalog), ["new", "web"]);
}

#[tokio::test]
async fn what_is_known_is_served_through_an_outage() {
    let mut server = small_cluster().await;
    let timing = ApiTiming {
        long_outage: Duration::from_millis(100),
        ..quick()
    };
    let mut watching = Watching::with(&server, None, timing);
    watching.until_complete().await;

    server.stop().await;
    let counters = watching.counters.clone();
    timeout(Duration::from_secs(30), async {
        while counters.watch_errors() < 20 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(services(&watching.states.borrow().catalog), ["web"]);
    server.delete_unseen(SERVICES, "default", "web");
    server.put(SERVICES, service("db"));
    server.resume().await;
    watching.until_services(&["db"]).await;
}

#[tokio::test]
async fn half_filled_objects_of_strangers_are_counted_and_harm_nobody() {
    let server = small_cluster().await;
    server.put(
        SERVICES,
        json!({"metadata": {"namespace": "default", "name": "empty"}}),
    );
    server.put(
        SERVICES,
        json!({
            "metadata": {"namespace": "default", "name": "odd"},
            "spec": {"clusterIP": 7, "ports": {"http": 80}, "type": []},
        }),
    );
    server.put(
        SLICES,
        json!({"metadata": {"name": 5}, "endpoints": "none"}),
    );
    let mut watching = Watching::server(&server);
    watching.until_services(&["empty", "odd", "web"]).await;
    assert_eq!(watching.states.borrow().problems.objects, 3);
    assert_eq!(watching.counters.rejected_objects(), 3);

    server.put(SERVICES, service("odd"));
    server.delete(SERVICES, "default", "empty");
    watching
        .until(|state| state.problems.objects == 1 && services(&state.catalog) == ["odd", "web"])
        .await;
}

#[tokio::test]
async fn server_without_versions_is_listed_again_and_again() {
    let server = small_cluster().await;
    server.give_no_versions(true);
    let mut watching = Watching::server(&server);
    watching.until_services(&["web"]).await;
    server.put(SERVICES, service("db"));
    watching.until_services(&["db", "web"]).await;
}

#[tokio::test]
async fn empty_store_of_an_offline_meta_server_does_not_wipe_out_what_is_known() {
    let server = small_cluster().await;
    let saved = saved_from(&server).await;
    server.delete_unseen(SERVICES, "default", "web");
    server.give_no_versions(true);

    let mut watching = Watching::with(&server, last_good(saved), quick());
    let state = watching.until(|state| state.complete).await;
    assert!(matches!(state.origin, Origin::LastGood { .. }));
    assert_eq!(services(&state.catalog), ["web"]);

    server.give_no_versions(false);
    server.put(SERVICES, service("kubernetes"));
    watching.until_services(&["kubernetes"]).await;
}

#[tokio::test]
async fn watch_that_is_refused_is_tried_until_it_is_granted() {
    let server = small_cluster().await;
    server.refuse_watch(SERVICES, Some(403));
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    server.put(SERVICES, service("db"));
    server.refuse_watch(SERVICES, None);
    watching.until_services(&["db", "web"]).await;
}

#[tokio::test]
async fn shutdown_ends_the_source() {
    let server = small_cluster().await;
    let mut watching = Watching::server(&server);
    watching.until_complete().await;
    watching.shutdown.cancel();
    timeout(Duration::from_secs(30), watching.task.join_next())
        .await
        .expect("ends")
        .expect("is there")
        .expect("does not panic");
}

#[tokio::test]
async fn kubeconfig_that_appears_later_is_taken_up() {
    let server = small_cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let settings = ApiSettings {
        way: ApiWay::Kubeconfig(path.clone()),
        qps: 100.0,
        burst: 200,
        socket_mark: None,
        user_agent: "edgemesh-test/1".to_owned(),
    };
    let counters = Arc::new(Counters::default());
    let (source, mut states) = ApiSource::new(settings, quick(), None, counters.clone());
    let mut task = JoinSet::new();
    task.spawn(source.run(CancellationToken::new()));
    timeout(Duration::from_secs(30), async {
        while counters.watch_errors() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();

    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url()}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let complete = states.wait_for(|state| state.complete);
    timeout(Duration::from_secs(30), complete)
        .await
        .expect("in time")
        .expect("published");
}

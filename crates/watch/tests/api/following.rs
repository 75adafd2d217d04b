//! The catalog follows what the server says, whatever the watches go through.

use std::time::Duration;

use edgemesh_watch::ApiTiming;
use serde_json::json;
use tokio::time::timeout;

use crate::fake_api_server::{ENDPOINTS, FakeApiServer, NODES, SERVICES, SLICES};
use crate::stage::{
    Watching, addresses, endpoints, ips, node, quick, service, services, slice, small_cluster,
};

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
    // Slices and nodes have long been listed when Services failed for the fifth time.
    watching.until_errors(5).await;
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

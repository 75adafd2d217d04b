//! What is served while the API server is not there, or not to be believed.

use std::time::{Duration, SystemTime};

use edgemesh_catalog::Catalog;
use edgemesh_watch::{ApiTiming, LastGood, Origin};

use crate::fake_api_server::{FakeApiServer, SERVICES, SLICES};
use crate::stage::{Watching, addresses, ips, quick, service, services, small_cluster};

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
    watching.until_errors(20).await;
    assert_eq!(services(&watching.states.borrow().catalog), ["web"]);
    server.delete_unseen(SERVICES, "default", "web");
    server.put(SERVICES, service("db"));
    server.resume().await;
    watching.until_services(&["db"]).await;
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
async fn empty_store_of_slices_does_not_cost_the_services_their_endpoints() {
    let server = small_cluster().await;
    let saved = saved_from(&server).await;
    server.delete_unseen(SLICES, "default", "web-1");
    server.give_no_versions(true);

    let mut watching = Watching::with(&server, last_good(saved), quick());
    let state = watching.until(|state| state.complete).await;
    assert_eq!(addresses(&state.catalog, "web"), ips(&["10.244.1.2"]));
}

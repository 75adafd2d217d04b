//! The agent without its API server.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::{ClusterService, Flavour, await_ok, test_within};

use crate::cluster::{Cluster, DNS, PATIENCE, REPAIRED, WEB};

const LATE: &str = "default/late:http";
/// How long a scenario may take.
const LIMIT: Duration = Duration::from_secs(240);
/// Nobody promised when a returned API server is found again; retries wait in between.
const FOUND_AGAIN: Duration = Duration::from_secs(60);

#[test]
fn what_changed_while_the_api_server_was_gone_is_caught_up() -> Result<()> {
    test_within(LIMIT, |lab| Cluster::with(lab, Flavour::Nft, catch_up))
}

#[test]
fn an_agent_that_starts_without_api_server_serves_the_last_good_catalog() -> Result<()> {
    test_within(LIMIT, |lab| Cluster::with(lab, Flavour::Nft, start_without))
}

fn catch_up(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    cluster.control_plane.kill_api_server()?;
    cluster.answered_by_agent()?;

    let web = cluster.web();
    cluster.control_plane.behind_the_scenes(|api| {
        api.apply_service(&late(cluster))?;
        api.delete_service(&web)
    })?;
    cluster.in_force()?;
    cluster.answered_by_agent()?;

    cluster.control_plane.start_api_server()?;
    let start = Instant::now();
    await_ok(
        FOUND_AGAIN,
        "the catalog is what the API server says",
        || {
            let portals = cluster.portals()?;
            portals.come_first()?;
            portals.are_unique()?;
            portals.intercept(LATE)?;
            portals.leave_alone(WEB.name)
        },
    )?;
    let took = start.elapsed().as_secs_f64();
    cluster.say(&format!("API server back: caught up after {took:.2} s"));

    let start = Instant::now();
    cluster.api()?.apply_service(&web)?;
    cluster.measure(start, REPAIRED, "changes are followed again", || {
        cluster.in_force()?;
        cluster.answered_by_agent()
    })
}

/// As an edge node that boots while its uplink is down.
fn start_without(cluster: &mut Cluster) -> Result<()> {
    let mut agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let status = agent.stop(PATIENCE)?;
    ensure!(status.success(), "the agent ended with {status}");
    cluster.portals()?.are_gone()?;
    cluster.control_plane.kill_api_server()?;

    let start = Instant::now();
    let _agent = cluster.start_agent()?;
    cluster.measure(
        start,
        REPAIRED,
        "started without API server: it serves",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;

    cluster.control_plane.start_api_server()?;
    let start = Instant::now();
    cluster.api()?.apply_service(&late(cluster))?;
    await_ok(FOUND_AGAIN, "the new Service is intercepted", || {
        cluster.portals()?.intercept(LATE)
    })?;
    let took = start.elapsed().as_secs_f64();
    cluster.say(&format!("API server back: new Service after {took:.2} s"));
    cluster.portals()?.intercept(DNS.name)
}

fn late(cluster: &Cluster) -> ClusterService {
    let [first, _] = &cluster.servers;
    ClusterService::new("default/late")
        .cluster_ip("10.96.10.4")
        .tcp("http", 80, 8080)
        .endpoint(first)
}

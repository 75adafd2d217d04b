//! Services and endpoints that come, change and go while the agent runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::{ClusterService, Pod, test_each_flavour};

use crate::cluster::{Cluster, Port, ask, refused};

/// Within this time a change shall be in force.
const FOLLOWED: Duration = Duration::from_secs(1);

const LATE: Port = Port {
    name: "default/late:http",
    address: "10.96.10.4:80",
    udp: false,
};

#[test]
fn services_and_endpoints_are_followed_live() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, follow))
}

fn follow(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let api = cluster.api()?;
    let [first, second] = &cluster.servers;

    let start = Instant::now();
    api.apply_service(&late("http").endpoint(first))?;
    cluster.measure(start, FOLLOWED, "Service made: it answers", || {
        cluster.portals()?.intercept(LATE.name)?;
        answered_by(cluster, first)
    })?;
    let start = Instant::now();
    api.apply_service(&late("http").endpoint(second))?;
    cluster.measure(
        start,
        FOLLOWED,
        "endpoint replaced: the new one answers",
        || answered_by(cluster, second),
    )?;
    let start = Instant::now();
    api.apply_service(&late("http"))?;
    cluster.measure(start, FOLLOWED, "endpoints gone: refused", || {
        refused(&cluster.client, LATE)?;
        refused(&cluster.node, LATE)
    })?;
    cluster.portals()?.intercept(LATE.name)?;
    let start = Instant::now();
    api.apply_service(&late("web").endpoint(first))?;
    cluster.measure(start, FOLLOWED, "port renamed: it answers", || {
        cluster.portals()?.leave_alone(LATE.name)?;
        cluster.portals()?.intercept("default/late:web")?;
        answered_by(cluster, first)
    })?;
    let start = Instant::now();
    api.delete_service(&late("web"))?;
    cluster.measure(start, FOLLOWED, "Service deleted: rules gone", || {
        cluster.portals()?.leave_alone("default/late")
    })?;
    cluster.in_force()
}

fn late(port: &str) -> ClusterService {
    ClusterService::new("default/late")
        .cluster_ip("10.96.10.4")
        .tcp(port, 80, 8080)
}

fn answered_by(cluster: &Cluster, pod: &Pod) -> Result<()> {
    for answer in [ask(&cluster.client, LATE)?, ask(&cluster.node, LATE)?] {
        ensure!(
            answer.server == pod.name(),
            "{} answered instead of {}",
            answer.server,
            pod.name()
        );
    }
    Ok(())
}

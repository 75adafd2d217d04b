//! Services that the kernel takes to their endpoints: nobody can tell the agent from
//! kube-proxy by who answers and whom the endpoint sees.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{ClusterService, Flavour, Place, await_ok, test, test_each_flavour};

use crate::agent::Datapath;
use crate::cluster::{Cluster, DNS, DNS_TCP, PATIENCE, Port, WEB, ask};
use crate::status::Status;

/// A Service whose only endpoint asks it itself.
const SELF: Port = Port {
    name: "default/self:http",
    address: "10.96.10.9:80",
    udp: false,
};

#[test]
fn kernel_path_answers_as_kube_proxy_does() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, as_kube_proxy))
}

#[test]
fn user_mode_is_told_from_it_by_whom_the_endpoint_sees() -> Result<()> {
    test(|lab| Cluster::with(lab, Flavour::Nft, in_user_mode))
}

fn as_kube_proxy(cluster: &mut Cluster) -> Result<()> {
    make_self(cluster)?;
    let _kube_proxy = cluster.start_kube_proxy()?;
    await_ok(PATIENCE, "kube-proxy serves the Service of one", || {
        ask(&cluster.client, SELF).map(|_| ())
    })?;
    let before = seen(cluster)?;
    let foreign = cluster.settled_foreign_rules()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let after = seen(cluster)?;
    ensure!(before == after, "kube-proxy: {before:?}\nagent: {after:?}");
    let caught = Status::of(cluster)?.caught()?;
    ensure!(caught == 0, "the agent itself took {caught} connections");
    cluster.foreign_rules_are(&foreign)
}

fn in_user_mode(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    cluster.agent.datapath = Datapath::User;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let caught = Status::of(cluster)?.caught()?;
    ensure!(caught > 0, "the agent took no connection");
    Ok(())
}

fn make_self(cluster: &Cluster) -> Result<()> {
    let [first, _] = &cluster.servers;
    cluster.api()?.apply_service(
        &ClusterService::new("default/self")
            .cluster_ip("10.96.10.9")
            .tcp("http", 80, 8080)
            .endpoint(first),
    )
}

/// Who answered whom, by the name of the pod and by the address that it saw. Of two endpoints
/// each is asked often enough to have answered (one in 2^30 times it was not).
fn seen(cluster: &Cluster) -> Result<BTreeSet<(&'static str, String, IpAddr)>> {
    let mut seen = BTreeSet::new();
    let mut note = |from: &'static str, place: &dyn Fn(Port) -> Result<(String, IpAddr)>| {
        for port in [WEB, DNS, DNS_TCP] {
            for _ in 0..30 {
                let (server, client) = place(port).context(port.name)?;
                seen.insert((from, format!("{}: {server}", port.name), client));
            }
        }
        anyhow::Ok(())
    };
    note("pod", &|port| asked(&cluster.client, port))?;
    note("host", &|port| asked(&cluster.node, port))?;
    let [first, _] = &cluster.servers;
    let (server, client) = asked(first, SELF)?;
    seen.insert(("itself", server, client));
    Ok(seen)
}

fn asked(from: &impl Place, port: Port) -> Result<(String, IpAddr)> {
    let answer = ask(from, port)?;
    Ok((answer.server, answer.client.ip()))
}

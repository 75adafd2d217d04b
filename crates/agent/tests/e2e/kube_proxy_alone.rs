//! kube-proxy alone: what the other scenarios build on.

use anyhow::Result;
use edgemesh_lab::{await_ok, test_each_flavour};

use crate::cluster::{Cluster, DNS, DNS_TCP, LONELY, PATIENCE, WEB, refused};

#[test]
fn kube_proxy_alone_serves_every_service() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, alone))
}

fn alone(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    await_ok(PATIENCE, "all are answered", || {
        cluster.answered_by_kube_proxy(&[WEB, DNS, DNS_TCP])?;
        refused(&cluster.client, LONELY)?;
        refused(&cluster.node, LONELY)
    })?;
    cluster.portals()?.are_gone()
}

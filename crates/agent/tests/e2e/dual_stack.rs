//! Services with addresses of both families, or of IPv6 alone.

use std::time::Instant;

use anyhow::Result;
use edgemesh_lab::{ClusterService, Family, test_each_flavour};

use crate::cluster::{Cluster, Port, REPAIRED};
use crate::logs::show;
use crate::programs::Programs;

const BOTH_V4: Port = Port {
    name: "default/both:http",
    address: "10.96.10.5:80",
    udp: false,
};
/// The second address of a Service that has one of each family.
pub(crate) const BOTH_V6: Port = Port {
    name: "default/both:http",
    address: "[fd00:10:96::5]:80",
    udp: false,
};
/// Of a Service that has an IPv6 address only.
pub(crate) const V6_ALONE: Port = Port {
    name: "default/six:dns",
    address: "[fd00:10:96::6]:53",
    udp: true,
};

#[test]
fn services_of_both_families_and_of_ipv6_alone_are_intercepted() -> Result<()> {
    if !Programs::find()?.are_dual_stack() {
        show("not tried: Kubernetes before 1.23 knows one family only");
        return Ok(());
    }
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, both_families))
}

fn both_families(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let start = Instant::now();
    make_services(cluster)?;
    cluster.measure(
        start,
        REPAIRED,
        "Services of both families made: they answer",
        || {
            for port in [BOTH_V4, BOTH_V6, V6_ALONE] {
                cluster.port_answered_by_agent(port)?;
            }
            Ok(())
        },
    )?;
    cluster.portals_of(Family::V6)?.come_first()?;
    cluster.portals()?.leave_alone("default/six")
}

/// Makes the Services behind [`BOTH_V6`] and [`V6_ALONE`].
pub(crate) fn make_services(cluster: &Cluster) -> Result<()> {
    let [first, second] = &cluster.servers;
    let api = cluster.api()?;
    let both = ClusterService::new("default/both")
        .cluster_ip("10.96.10.5")
        .cluster_ip("fd00:10:96::5")
        .tcp("http", 80, 8080)
        .endpoint(first)
        .endpoint(second);
    let six = ClusterService::new("default/six")
        .cluster_ip("fd00:10:96::6")
        .udp("dns", 53, 5353)
        .endpoint(first);
    api.apply_service(&both)?;
    api.apply_service(&six)
}

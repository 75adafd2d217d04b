//! The Services of a run: many that nobody asks for, one that answers, and some to add.

use std::net::{IpAddr, Ipv4Addr};

use edgemesh_lab::{ClusterService, Endpoint, Pod};

/// The port of every Service.
pub(crate) const PORT: u16 = 80;
/// The port that its endpoints listen on.
pub(crate) const TARGET: u16 = 8080;
/// How many Services are added in one run.
pub(crate) const ADDED: usize = 3;
/// Further Services that may be added have these numbers.
const FIRST_ADDED: usize = 60_000;

/// Service number `index`, with two endpoints that exist as addresses only.
pub(crate) fn bulk(index: usize) -> ClusterService {
    let mut service = named(&format!("default/service-{index:05}"), index);
    for endpoint in [2 * index, 2 * index + 1] {
        service.endpoints.push(Endpoint {
            addresses: vec![IpAddr::V4(nth([10, 245], endpoint))],
            node: Some(format!("other-{}", endpoint % 100)),
            ready: true,
        });
    }
    service
}

/// The Service that is asked to know when all are in.
pub(crate) fn answering(pods: &[Pod; 2]) -> ClusterService {
    with_pods(named("default/answering", FIRST_ADDED - 1), pods)
}

/// A Service to add.
pub(crate) fn added(index: usize, pods: &[Pod; 2]) -> ClusterService {
    let name = format!("default/added-{index:02}");
    with_pods(named(&name, FIRST_ADDED + index), pods)
}

fn named(name: &str, index: usize) -> ClusterService {
    ClusterService::new(name)
        .cluster_ip(&nth([10, 96], index).to_string())
        .tcp("http", PORT, TARGET)
}

fn with_pods(service: ClusterService, pods: &[Pod; 2]) -> ClusterService {
    let mut service = service;
    for pod in pods {
        service.endpoints.push(Endpoint {
            addresses: vec![IpAddr::V4(pod.ipv4())],
            node: Some(pod.node_name().to_owned()),
            ready: true,
        });
    }
    service
}

/// Address `index` of a /16. The first ones are left to others: the API server's own
/// Service is there.
fn nth([a, b]: [u8; 2], index: usize) -> Ipv4Addr {
    let number = u16::try_from(index + 256).unwrap_or(u16::MAX);
    let [c, d] = number.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

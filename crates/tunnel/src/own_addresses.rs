//! At which of its addresses a node is worth to be tried, the best first. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use edgemesh_catalog::{Catalog, MeshNode, NodeName};

/// How good an address is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// An administrator says so; in the order in which it was said.
    Advertised(usize),
    /// It is the same everywhere.
    Global,
    /// Private, and the one that Kubernetes knows this node by.
    OfTheNode,
    /// Private: of this site's network, or of a bridge within the host.
    Private,
}

/// Where a node says that it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnAddresses<'a> {
    /// This node.
    pub(crate) node: &'a NodeName,
    /// What an administrator says.
    pub(crate) advertised: &'a [SocketAddr],
    /// Addresses that never leave this host, such as the one that portals lead to.
    pub(crate) never: &'a [IpAddr],
    /// Which addresses are pods' and Services', and which are this Node's.
    pub(crate) catalog: &'a Catalog,
}

impl OwnAddresses<'_> {
    /// The addresses to publish, best first, at most as many as are kept of one node.
    /// `found` are those that the transport knows of; `everywhere` are the ports at which it
    /// listens on all addresses, of IPv4 and of IPv6.
    pub(crate) fn best_first(
        &self,
        found: impl IntoIterator<Item = SocketAddr>,
        everywhere: [Option<u16>; 2],
    ) -> Vec<SocketAddr> {
        let mut ranked = BTreeMap::new();
        let mut put = |rank: Rank, address: SocketAddr| {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let best = ranked.entry(address).or_insert(rank);
            *best = rank.min(*best);
        };
        for (at, address) in self.advertised.iter().enumerate() {
            put(Rank::Advertised(at), *address);
        }
        let of_node = self.of_node(everywhere);
        for address in found.into_iter().chain(of_node) {
            if self.leads_here(address.ip().to_canonical()) {
                put(self.rank(address.ip().to_canonical()), address);
            }
        }
        let mut ranked: Vec<_> = ranked.into_iter().map(|(of, rank)| (rank, of)).collect();
        ranked.sort_unstable();
        ranked.truncate(MeshNode::MAX_ADDRESSES);
        ranked.into_iter().map(|(_, address)| address).collect()
    }

    /// What Kubernetes knows this node by: in a cloud there are addresses among it that the
    /// host itself does not have.
    fn of_node(&self, [v4, v6]: [Option<u16>; 2]) -> impl Iterator<Item = SocketAddr> {
        let addresses = self.catalog.node(self.node).into_iter();
        addresses
            .flat_map(|node| &node.addresses)
            .filter_map(move |ip| {
                let port = if ip.is_ipv4() { v4 } else { v6 };
                port.map(|port| SocketAddr::new(*ip, port))
            })
    }

    /// Whether who sends to it from elsewhere can mean this node.
    fn leads_here(&self, ip: IpAddr) -> bool {
        let of_one_host = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let unusable = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
        !of_one_host && !unusable && !self.never.contains(&ip) && !self.is_of_the_cluster(ip)
    }

    /// Whether it is a pod's, or a bridge's of pods, or a Service's. Such an address may lead
    /// to another node, or nowhere, where the pod network does not reach.
    fn is_of_the_cluster(&self, ip: IpAddr) -> bool {
        let mut pods = self.catalog.nodes().flat_map(|node| &node.pod_cidrs);
        let mut services = self.catalog.services().flat_map(|of| &of.cluster_ips);
        pods.any(|network| network.contains(&ip)) || services.any(|of| *of == ip)
    }

    fn rank(&self, ip: IpAddr) -> Rank {
        let node = self.catalog.node(self.node);
        if !is_private(ip) {
            Rank::Global
        } else if node.is_some_and(|node| node.addresses.contains(&ip)) {
            Rank::OfTheNode
        } else {
            Rank::Private
        }
    }
}

/// Whether another host may have it elsewhere: RFC 1918, RFC 6598 (carriers' NATs), RFC 4193.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    const CARRIERS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.to_bits() >> 22 == CARRIERS.to_bits() >> 22,
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{Change, Fold, Node, ObjectName, Service, ServiceKind, TrafficPolicy};

    use super::*;

    const BOTH: [Option<u16>; 2] = [Some(20006), Some(20006)];

    fn catalog() -> Catalog {
        let mut fold = Fold::default();
        let node = |name: &str, pods: &str, addresses: &[&str]| {
            Change::Node(Node {
                name: NodeName::new(name),
                zone: None,
                pod_cidrs: vec![pods.parse().unwrap()],
                addresses: addresses.iter().map(|of| of.parse().unwrap()).collect(),
                labels: Default::default(),
            })
        };
        fold.apply(node(
            "own",
            "10.244.1.0/24",
            &["192.168.7.2", "203.0.113.5"],
        ));
        fold.apply(node("other", "10.244.2.0/24", &["192.168.7.3"]));
        fold.apply(Change::Service(Service {
            name: ObjectName::new("default", "web"),
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
            headless: false,
            filter_label: false,
            session_affinity: None,
            internal_traffic_policy: TrafficPolicy::Cluster,
            ports: Vec::new(),
        }));
        fold.catalog()
    }

    fn best_first(
        advertised: &[&str],
        found: &[&str],
        everywhere: [Option<u16>; 2],
    ) -> Vec<String> {
        let read = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let own = OwnAddresses {
            node: &NodeName::new("own"),
            advertised: &read(advertised),
            never: &["169.254.96.16", "fd00:ed6e:6d65:7368::1"].map(|of| of.parse().unwrap()),
            catalog: &catalog(),
        };
        let addresses = own.best_first(read(found), everywhere);
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn advertised_comes_first_then_global_then_private() {
        let found = ["172.17.0.1:20006", "[fd12::1]:20006", "198.51.100.1:4321"];
        assert_eq!(
            best_first(&["10.0.0.9:1", "198.51.100.9:2"], &found, BOTH),
            [
                "10.0.0.9:1",
                "198.51.100.9:2",
                "198.51.100.1:4321",
                "203.0.113.5:20006",
                "192.168.7.2:20006",
                "172.17.0.1:20006",
                "[fd12::1]:20006",
            ]
        );
    }

    #[test]
    fn what_never_leaves_a_host_is_not_told() {
        let found = [
            "127.0.0.1:1",
            "[::1]:1",
            "169.254.96.16:1",
            "169.254.7.7:1",
            "[fd00:ed6e:6d65:7368::1]:1",
            "[fe80::1]:1",
            "[::ffff:127.0.0.1]:1",
        ];
        assert_eq!(best_first(&[], &found, [None, None]), [""; 0]);
    }

    #[test]
    fn addresses_of_pods_and_services_are_not_told() {
        let found = ["10.244.1.1:1", "10.244.2.7:1", "10.96.0.9:1", "10.96.0.8:1"];
        assert_eq!(best_first(&[], &found, [None, None]), ["10.96.0.8:1"]);
    }

    #[test]
    fn nodes_own_addresses_are_told_with_the_port_that_is_listened_at() {
        let told = best_first(&[], &["192.168.7.2:4000"], [Some(4000), None]);
        assert_eq!(told, ["203.0.113.5:4000", "192.168.7.2:4000"]);
        // It listens at one address: at the others it is not.
        assert_eq!(
            best_first(&[], &["192.168.7.2:1"], [None, None]),
            ["192.168.7.2:1"]
        );
    }

    #[test]
    fn carriers_addresses_are_private() {
        let found = [
            "100.64.0.1:1",
            "100.127.255.1:1",
            "100.128.0.1:1",
            "100.63.0.1:1",
        ];
        assert_eq!(
            best_first(&[], &found, [None, None]),
            [
                "100.63.0.1:1",
                "100.128.0.1:1",
                "100.64.0.1:1",
                "100.127.255.1:1"
            ]
        );
    }

    #[test]
    fn no_more_is_told_than_is_kept_and_it_is_the_best() {
        let many: Vec<_> = (0..40).map(|at| format!("10.0.0.{at}:1")).collect();
        let mut found: Vec<_> = many.iter().map(String::as_str).collect();
        found.push("198.51.100.1:1");
        let told = best_first(&[], &found, [None, None]);
        assert_eq!(told.len(), MeshNode::MAX_ADDRESSES);
        assert_eq!(told[0], "198.51.100.1:1");
    }
}

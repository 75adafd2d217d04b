//! What holds for every cluster.

use std::sync::Arc;

use edgemesh_catalog::{
    Change, Endpoint, EndpointSlice, Fold, NodeName, ObjectName, Protocol, Service, TrafficPolicy,
};
use proptest::prelude::*;

use super::tests::{
    DOWN, LAST, READY, a_slice, at, cluster, endpoint_port, here_in_zone_a, ip, plan, policy,
    service_port, web,
};
use crate::{
    BypassingNetwork, Datapath, DatapathMode, Earlier, FamilyFacts, FilterMode, HostFacts, Policy,
    Reachability, Target, plan_since,
};

proptest! {
    #[test]
    fn order_of_arrival_does_not_change_the_plan(
        (changes, shuffled) in changes().prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle())),
        policy in a_policy(),
    ) {


        prop_assert_eq!(plan(&cluster(changes), &policy), plan(&cluster(shuffled), &policy));
    }

    #[test]
    fn plan_that_builds_on_an_earlier_one_is_the_plan(
        changes in changes(),
        later in changes(),
        gone in prop::collection::vec(0u8..6, 0..3),
        policies in (a_policy(), a_policy()),
        same_policy: bool,
        reachability in (some_peers(), some_peers()),
    ) {
        let mut fold = Fold::default();
        for change in changes {
            fold.apply(change);
        }
        let before = fold.catalog();
        for change in later {
            fold.apply(change);
        }
        for number in gone {
            fold.apply(Change::ServiceGone(ObjectName::new("default", format!("s{number}"))));
        }
        let policy = if same_policy { &policies.0 } else { &policies.1 };
        let plan = crate::plan(&before, &reachability.0, &policies.0);
        let earlier = Earlier {
            catalog: &before,
            reachability: &reachability.0,
            policy: &policies.0,
            plan: &plan,
        };
        prop_assert_eq!(
            plan_since(&fold.catalog(), &reachability.1, policy, earlier),
            crate::plan(&fold.catalog(), &reachability.1, policy)
        );
    }

    #[test]
    fn every_intercepted_frontend_has_one_portal_and_every_port_a_verdict(
        changes in changes(),
        policy in a_policy(),
        peers in some_peers(),
    ) {
        let catalog = cluster(changes);
        let plan = crate::plan(&catalog, &peers, &policy);
        let mut seen = std::collections::BTreeSet::new();
        for (_, portal) in plan.intercepted() {
            prop_assert!(seen.insert(portal.frontend), "{} twice", portal.frontend);
        }
        for port in plan.ports() {
            prop_assert_eq!(port.left_alone.is_some(), port.portals.is_empty());
            for portal in &port.portals {
                if let Target::Forward { endpoints, datapath, .. } = &portal.target {
                    let kernels = datapath.kernel_endpoints(endpoints).count();
                    match datapath {
                        Datapath::Kernel => prop_assert_eq!(kernels, endpoints.len()),
                        Datapath::KernelAndAgent => {
                            prop_assert!((1..endpoints.len()).contains(&kernels));
                            prop_assert_eq!(port.affinity, None);
                        }
                        Datapath::User(_) => prop_assert_eq!(kernels, 0),
                    }
                    prop_assert!(!endpoints.is_empty());
                    prop_assert!(endpoints.windows(2).all(|w| w[0].address < w[1].address));
                    prop_assert!(endpoints.iter().all(|e| e.address.is_ipv4() == portal.frontend.ip.is_ipv4()));
                }
            }
        }
    }

    #[test]
    fn a_filtered_service_has_no_portal_whatever_else_it_says(
        changes in changes(),
        policy in a_policy(),
    ) {
        let catalog = cluster(changes);
        let plan = plan(&catalog, &policy);
        for (port, _) in plan.intercepted() {
            let service = catalog.service(&port.name.service).unwrap();
            let exempt = match policy.filter {
                FilterMode::IfLabelExists => service.filter_label,
                FilterMode::IfLabelDoesNotExist => !service.filter_label,
            };
            prop_assert!(!exempt, "{} is filtered and yet intercepted", port.name);
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let services = prop::collection::btree_map(0u8..6, a_service(), 0..6);
    let slices = prop::collection::btree_map(0u8..8, some_slice(), 0..8);
    (services, slices).prop_map(|(services, slices)| {
        let services = services.into_iter().map(|(n, s)| {
            Change::Service(Service {
                name: ObjectName::new("default", format!("s{n}")),
                ..s
            })
        });
        let slices = slices.into_iter().map(|(n, s)| {
            Change::Slice(EndpointSlice {
                name: ObjectName::new("default", format!("e{n}")),
                ..s
            })
        });
        services
            .chain(slices)
            .chain([Change::Node(here_in_zone_a())])
            .collect()
    })
}

fn a_service() -> impl Strategy<Value = Service> {
    let ips = prop::collection::vec(
        prop::sample::select(vec![
            "10.96.0.1",
            "10.96.0.2",
            "fd00:96::1",
            "0.0.0.0",
            "127.0.0.1",
        ]),
        0..3,
    );
    let ports = prop::collection::vec(
        (
            prop::sample::select(vec!["", "http", "dns"]),
            prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            1u16..4,
        ),
        0..4,
    );
    let affinity = prop::option::of(Just(std::time::Duration::from_secs(60)));
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (ips, ports, switches, affinity).prop_map(
        |(ips, ports, (headless, filter_label, local), session_affinity)| Service {
            session_affinity,
            cluster_ips: ips.into_iter().map(ip).collect(),
            ports: ports
                .into_iter()
                .map(|(name, protocol, port)| service_port(name, protocol, port))
                .collect(),
            headless,
            filter_label,
            internal_traffic_policy: if local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            },
            ..web()
        },
    )
}

fn some_slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::1", "127.0.0.1"]),
        prop::sample::select(vec![READY, LAST, DOWN]),
        prop::option::of(prop::sample::select(vec!["here", "there"])),
    )
        .prop_map(|(address, state, node)| Endpoint {
            state,
            node: node.map(NodeName::new),
            ..at(address)
        });
    (0u8..6, prop::collection::vec(endpoint, 0..4)).prop_map(|(service, endpoints)| EndpointSlice {
        service: format!("s{service}").into(),
        ports: vec![
            endpoint_port("", Protocol::Tcp, 8080),
            endpoint_port("http", Protocol::Tcp, 8081),
            endpoint_port("dns", Protocol::Udp, 5353),
        ],
        endpoints,
        ..a_slice("x", [])
    })
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (switches, some_host()).prop_map(|((inverted, ipv4, ipv6, hybrid), host)| Policy {
        filter: if inverted {
            FilterMode::IfLabelDoesNotExist
        } else {
            FilterMode::IfLabelExists
        },
        ipv4,
        ipv6,
        datapath: if hybrid {
            DatapathMode::Hybrid
        } else {
            DatapathMode::User
        },
        host,
        ..policy()
    })
}

fn some_host() -> impl Strategy<Value = HostFacts> {
    let facts = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(forwarding, shown_to_nat, keeps_clients)| {
            let bypassing = BypassingNetwork {
                network: "10.0.0.2/31".parse().unwrap(),
                why: "a bridge".into(),
            };
            FamilyFacts {
                not_forwarding: (!forwarding).then(|| "off".into()),
                bypassing: (!shown_to_nat).then_some(bypassing).into_iter().collect(),
                no_kernel_path: None,
                no_affinity: (!keeps_clients).then(|| "none".into()),
            }
        },
    );
    (facts.clone(), facts).prop_map(|(ipv4, ipv6)| HostFacts { ipv4, ipv6 })
}

fn some_peers() -> impl Strategy<Value = Reachability> {
    let node = || prop::sample::select(vec!["here", "there", "elsewhere"]).prop_map(NodeName::new);
    let network = prop::sample::select(vec!["10.0.0.1/32", "10.0.0.0/8", "fd00::/8"])
        .prop_map(|text| Arc::from([text.parse().unwrap()]));
    let peers = prop::option::of(prop::collection::vec(node(), 0..3));
    let proofs = prop::collection::btree_map(node(), network, 0..2);
    (peers, proofs).prop_map(|(peers, proofs)| {
        let peers = peers.map_or_else(Reachability::default, Reachability::with_peers);
        peers.with_verified(Arc::new(proofs))
    })
}

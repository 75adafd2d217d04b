use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{
    Catalog, Change, Endpoint, EndpointHints, EndpointPort, EndpointSlice, EndpointState, Fold,
    Node, NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy,
};

use crate::{
    Earlier, EndpointChoice, FilterMode, LeftAlone, Plan, Policy, Portal, Reachability, Refusal,
    ServicePortPlan, Target, plan_since,
};

pub(super) const READY: EndpointState = EndpointState::Ready;
pub(super) const LAST: EndpointState = EndpointState::ServingTerminating;
pub(super) const DOWN: EndpointState = EndpointState::NotReady;

#[test]
fn service_with_ready_endpoints_is_forwarded_to_all_of_them() {
    let catalog = cluster([
        Change::Service(web()),
        slice("a", [at("10.244.1.2"), at("10.244.2.2")]),
    ]);
    let port = only_port(&catalog, &policy());
    assert_eq!(
        forwarded(&port.portals[0]),
        (
            addresses(["10.244.1.2:8080", "10.244.2.2:8080"]),
            EndpointChoice::Ready
        )
    );
    assert_eq!(port.portals[0].frontend.to_string(), "10.96.0.1:80/tcp");
}

#[test]
fn filter_label_of_any_value_leaves_the_service_to_kube_proxy() {
    let labelled = Service {
        filter_label: true,
        ..web()
    };
    assert_eq!(
        left_alone(labelled.clone(), FilterMode::IfLabelExists),
        Some(LeftAlone::FilterLabel)
    );
    assert_eq!(left_alone(web(), FilterMode::IfLabelExists), None);
    assert_eq!(left_alone(labelled, FilterMode::IfLabelDoesNotExist), None);
    assert_eq!(
        left_alone(web(), FilterMode::IfLabelDoesNotExist),
        Some(LeftAlone::NoFilterLabel)
    );
}

#[test]
fn labelled_headless_service_has_no_portal_because_it_is_headless() {
    let node_exporter = Service {
        headless: true,
        cluster_ips: vec![],
        filter_label: true,
        ..web()
    };
    for mode in [FilterMode::IfLabelExists, FilterMode::IfLabelDoesNotExist] {
        assert_eq!(
            left_alone(node_exporter.clone(), mode),
            Some(LeftAlone::Headless)
        );
    }
}

#[test]
fn external_name_and_unassigned_services_have_no_portal() {
    let alias = Service {
        kind: ServiceKind::ExternalName,
        cluster_ips: vec![],
        ..web()
    };
    let pending = Service {
        cluster_ips: vec![],
        ..web()
    };
    assert_eq!(
        left_alone(alias, FilterMode::IfLabelExists),
        Some(LeftAlone::ExternalName)
    );
    assert_eq!(
        left_alone(pending, FilterMode::IfLabelExists),
        Some(LeftAlone::NoClusterIp)
    );
}

#[test]
fn service_without_endpoints_is_refused_not_left_to_time_out() {
    let catalog = cluster([Change::Service(web())]);
    let port = only_port(&catalog, &policy());
    assert_eq!(port.portals[0].target, Target::Refuse(Refusal::NoEndpoints));
}

#[test]
fn both_families_of_a_dual_stack_service_get_a_portal_with_endpoints_of_their_own() {
    let dual = Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ..web()
    };
    let catalog = cluster([
        Change::Service(dual),
        slice("v4", [at("10.244.1.2")]),
        slice("v6", [at("fd00:244::2")]),
    ]);
    let port = only_port(&catalog, &policy());
    assert_eq!(
        forwarded(&port.portals[0]).0,
        addresses(["10.244.1.2:8080"])
    );
    assert_eq!(
        forwarded(&port.portals[1]).0,
        addresses(["[fd00:244::2]:8080"])
    );
}

#[test]
fn host_without_ipv6_leaves_only_the_ipv6_portal_alone() {
    let dual = Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ..web()
    };
    let catalog = cluster([Change::Service(dual), slice("v4", [at("10.244.1.2")])]);
    let port = only_port(
        &catalog,
        &Policy {
            ipv6: false,
            ..policy()
        },
    );
    assert!(matches!(port.portals[0].target, Target::Forward { .. }));
    assert_eq!(
        port.portals[1].target,
        Target::LeaveAlone(LeftAlone::NoIpv6)
    );
}

#[test]
fn frontend_claimed_twice_goes_to_the_first_service_by_name() {
    let twin = Service {
        name: ObjectName::new("default", "zweb"),
        ..web()
    };
    let catalog = cluster([Change::Service(twin), Change::Service(web())]);
    let plan = plan(&catalog, &policy());
    let targets: Vec<_> = plan.ports().map(|p| p.portals[0].target.clone()).collect();
    assert_eq!(
        targets,
        [
            Target::Refuse(Refusal::NoEndpoints),
            Target::LeaveAlone(LeftAlone::FrontendTaken(Box::new(
                web().port_name(&web().ports[0])
            ))),
        ]
    );
    assert_eq!(plan.intercepted().count(), 1);
}

#[test]
fn loopback_endpoint_of_a_stranger_is_never_dialled() {
    let catalog = cluster([
        Change::Service(web()),
        slice(
            "a",
            [
                at("127.0.0.1"),
                at("169.254.169.254"),
                at("::ffff:127.0.0.1"),
            ],
        ),
    ]);
    let port = only_port(&catalog, &policy());
    assert_eq!(port.portals[0].target, Target::Refuse(Refusal::NoEndpoints));
}

#[test]
fn named_ports_follow_the_name_and_protocol_not_the_number() {
    let service = Service {
        ports: vec![
            service_port("dns", Protocol::Udp, 53),
            service_port("dns", Protocol::Tcp, 53),
        ],
        ..web()
    };
    let mut of_service = a_slice("a", [at("10.244.1.2")]);
    of_service.ports = vec![
        endpoint_port("dns", Protocol::Udp, 5353),
        endpoint_port("dns", Protocol::Tcp, 5354),
        endpoint_port("other", Protocol::Tcp, 9),
    ];
    let plan = plan(
        &cluster([Change::Service(service), Change::Slice(of_service)]),
        &policy(),
    );
    let got: Vec<_> = plan
        .intercepted()
        .map(|(_, portal)| (portal.frontend.to_string(), forwarded(portal).0))
        .collect();
    assert_eq!(
        got,
        [
            (
                "10.96.0.1:53/tcp".to_owned(),
                addresses(["10.244.1.2:5354"])
            ),
            (
                "10.96.0.1:53/udp".to_owned(),
                addresses(["10.244.1.2:5353"])
            ),
        ]
    );
}

#[test]
fn endpoint_in_two_slices_counts_once_and_the_better_state_wins() {
    let catalog = cluster([
        Change::Service(web()),
        slice("new", [at("10.244.1.2")]),
        slice(
            "old",
            [Endpoint {
                state: DOWN,
                ..at("10.244.1.2")
            }],
        ),
    ]);
    let port = only_port(&catalog, &policy());
    assert_eq!(
        forwarded(&port.portals[0]).0,
        addresses(["10.244.1.2:8080"])
    );
}

/// The cases of kube-proxy's own table for CategorizeEndpoints: who is used, and why.
#[test]
fn usable_endpoints_are_those_that_kube_proxy_would_use() {
    let on = |node: &str, e: Endpoint| Endpoint {
        node: Some(NodeName::new(node)),
        ..e
    };
    let state = |state, e: Endpoint| Endpoint { state, ..e };
    let zones = |zones: &[&str], e: Endpoint| Endpoint {
        hints: Some(Box::new(EndpointHints {
            zones: zones.iter().map(|z| (*z).into()).collect(),
            nodes: vec![],
        })),
        ..e
    };
    let nodes = |nodes: &[&str], zone: &str, e: Endpoint| Endpoint {
        hints: Some(Box::new(EndpointHints {
            zones: vec![zone.into()],
            nodes: nodes.iter().map(|n| NodeName::new(*n)).collect(),
        })),
        ..e
    };
    let (a, b, c) = (at("10.0.0.1"), at("10.0.0.2"), at("10.0.0.3"));
    let cluster_wide = TrafficPolicy::Cluster;
    let local = TrafficPolicy::Local;
    type Case = (
        &'static str,
        TrafficPolicy,
        Vec<Endpoint>,
        Result<(&'static [&'static str], EndpointChoice), Refusal>,
    );
    let cases: Vec<Case> = vec![
        (
            "hints for our zone are followed",
            cluster_wide,
            vec![zones(&["zone-a"], a.clone()), zones(&["zone-b"], b.clone())],
            Ok((&["10.0.0.1:8080"], EndpointChoice::HintedForZone)),
        ),
        (
            "one ready endpoint without hints switches them off",
            cluster_wide,
            vec![zones(&["zone-b"], a.clone()), b.clone()],
            Ok((&["10.0.0.1:8080", "10.0.0.2:8080"], EndpointChoice::Ready)),
        ),
        (
            "an unready endpoint without hints does not",
            cluster_wide,
            vec![zones(&["zone-a"], a.clone()), state(DOWN, b.clone())],
            Ok((&["10.0.0.1:8080"], EndpointChoice::HintedForZone)),
        ),
        (
            "no hint for our zone: all are used",
            cluster_wide,
            vec![zones(&["zone-b"], a.clone()), zones(&["zone-c"], b.clone())],
            Ok((&["10.0.0.1:8080", "10.0.0.2:8080"], EndpointChoice::Ready)),
        ),
        (
            "a hint for our node goes before one for our zone",
            cluster_wide,
            vec![
                nodes(&["here"], "zone-a", a.clone()),
                nodes(&["there"], "zone-a", b.clone()),
            ],
            Ok((&["10.0.0.1:8080"], EndpointChoice::HintedForNode)),
        ),
        (
            "node hints for others only: zone hints count",
            cluster_wide,
            vec![
                nodes(&["x"], "zone-a", a.clone()),
                nodes(&["there"], "zone-b", b.clone()),
            ],
            Ok((&["10.0.0.1:8080"], EndpointChoice::HintedForZone)),
        ),
        (
            "terminating ones are not used while one is ready",
            cluster_wide,
            vec![a.clone(), state(LAST, b.clone())],
            Ok((&["10.0.0.1:8080"], EndpointChoice::Ready)),
        ),
        (
            "terminating ones that serve are used when none is ready",
            cluster_wide,
            vec![state(DOWN, a.clone()), state(LAST, b.clone())],
            Ok((&["10.0.0.2:8080"], EndpointChoice::ServingTerminating)),
        ),
        (
            "nothing usable",
            cluster_wide,
            vec![state(DOWN, a.clone())],
            Err(Refusal::NoEndpoints),
        ),
        (
            "Local uses this node's only, whatever the hints say",
            local,
            vec![
                on("here", zones(&["zone-b"], a.clone())),
                on("there", b.clone()),
                c.clone(),
            ],
            Ok((&["10.0.0.1:8080"], EndpointChoice::ReadyOnNode)),
        ),
        (
            "Local falls back to this node's terminating ones, not to other nodes",
            local,
            vec![on("here", state(LAST, a.clone())), on("there", b.clone())],
            Ok((&["10.0.0.1:8080"], EndpointChoice::ServingTerminatingOnNode)),
        ),
        (
            "Local without one here is refused and says so",
            local,
            vec![on("there", b.clone())],
            Err(Refusal::NoEndpointsOnNode),
        ),
        (
            "Local without any at all",
            local,
            vec![],
            Err(Refusal::NoEndpoints),
        ),
    ];
    for (name, internal_traffic_policy, endpoints, want) in cases {
        let catalog = cluster([
            Change::Service(Service {
                internal_traffic_policy,
                ..web()
            }),
            slice("a", endpoints),
            Change::Node(here_in_zone_a()),
        ]);
        let port = only_port(&catalog, &policy());
        let want = match want {
            Ok((endpoints, choice)) => {
                assert_eq!(
                    forwarded(&port.portals[0]),
                    (
                        endpoints.iter().map(|e| e.parse().unwrap()).collect(),
                        choice
                    ),
                    "{name}"
                );
                continue;
            }
            Err(refusal) => Target::Refuse(refusal),
        };
        assert_eq!(port.portals[0].target, want, "{name}");
    }
}

#[test]
fn affinity_timeout_is_carried_into_the_plan() {
    let sticky = Service {
        session_affinity: Some(Duration::from_secs(10_800)),
        ..web()
    };
    let port = only_port(&cluster([Change::Service(sticky)]), &policy());
    assert_eq!(port.affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn what_has_not_changed_is_shared_with_the_earlier_plan() {
    let mut fold = Fold::default();
    let other = Service {
        name: ObjectName::new("default", "other"),
        cluster_ips: vec!["10.96.0.2".parse().unwrap()],
        ..web()
    };
    fold.apply(Change::Service(web()));
    fold.apply(slice("a", [at("10.244.1.2")]));
    let before = fold.catalog();
    let earlier = plan(&before, &policy());
    fold.apply(Change::Service(other));
    let nothing_new = Earlier {
        catalog: &before,
        reachability: &Reachability::default(),
        policy: &policy(),
        plan: &earlier,
    };
    let later = plan_since(
        &fold.catalog(),
        nothing_new.reachability,
        &policy(),
        nothing_new,
    );
    let kept = earlier.ports().next().unwrap();
    assert!(Arc::ptr_eq(later.port(&kept.name).unwrap(), kept));
    assert_eq!(later.ports().count(), 2);
}

/// The plan of an agent without a tunnel.
pub(super) fn plan(catalog: &Catalog, policy: &Policy) -> Plan {
    crate::plan(catalog, &Reachability::default(), policy)
}

pub(super) fn cluster(changes: impl IntoIterator<Item = Change>) -> Catalog {
    let mut fold = Fold::default();
    for change in changes {
        fold.apply(change);
    }
    fold.catalog()
}

pub(super) fn policy() -> Policy {
    Policy::of(NodeName::new("here"))
}

pub(super) fn here_in_zone_a() -> Node {
    Node {
        name: NodeName::new("here"),
        zone: Some("zone-a".into()),
        pod_cidrs: vec![],
        addresses: vec![],
        labels: Default::default(),
    }
}

pub(super) fn web() -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![ip("10.96.0.1")],
        headless: false,
        filter_label: false,
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        ports: vec![service_port("http", Protocol::Tcp, 80)],
    }
}

pub(super) fn service_port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port,
    }
}

pub(super) fn endpoint_port(name: &str, protocol: Protocol, port: u16) -> EndpointPort {
    EndpointPort {
        name: name.into(),
        protocol,
        port,
    }
}

pub(super) fn a_slice(name: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: "web".into(),
        ports: vec![endpoint_port("http", Protocol::Tcp, 8080)],
        endpoints: endpoints.into_iter().collect(),
    }
}

pub(super) fn slice(name: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Change {
    Change::Slice(a_slice(name, endpoints))
}

pub(super) fn at(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        node: None,
        state: READY,
        hints: None,
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses<const N: usize>(texts: [&str; N]) -> Vec<SocketAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn only_port(catalog: &Catalog, policy: &Policy) -> ServicePortPlan {
    let plan: Plan = plan(catalog, policy);
    let ports: Vec<_> = plan.ports().collect();
    assert_eq!(ports.len(), 1, "one service port expected");
    (**ports[0]).clone()
}

fn left_alone(service: Service, filter: FilterMode) -> Option<LeftAlone> {
    let catalog = cluster([Change::Service(service)]);
    only_port(&catalog, &Policy { filter, ..policy() }).left_alone
}

fn forwarded(portal: &Portal) -> (Vec<SocketAddr>, EndpointChoice) {
    match &portal.target {
        Target::Forward {
            endpoints, choice, ..
        } => (endpoints.iter().map(|e| e.address).collect(), *choice),
        other => panic!("{} should be forwarded, not {other:?}", portal.frontend),
    }
}

use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{
    Change, Endpoint, EndpointPort, EndpointSlice, Fold, NodeName, TrafficPolicy,
};
use edgemesh_forward::Destinations;
use edgemesh_plan::{Policy, Reachability, plan};

use super::*;

fn service(name: &str, ip: Option<&str>) -> Service {
    let (namespace, name) = name.split_once('/').unwrap();
    Service {
        name: ObjectName::new(namespace, name),
        kind: ServiceKind::ClusterIp,
        cluster_ips: ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
        headless: ip.is_none(),
        filter_label: false,
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        ports: [("http", 80), ("https", 443)]
            .map(|(name, port)| ServicePort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port,
            })
            .to_vec(),
    }
}

fn slice(service: &str, endpoints: &[(&str, EndpointState)]) -> Change {
    Change::Slice(EndpointSlice {
        name: ObjectName::new("default", format!("{service}-1")),
        service: service.into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: endpoints
            .iter()
            .map(|(address, state)| Endpoint {
                address: address.parse().unwrap(),
                node: Some(NodeName::new("edge-1")),
                state: *state,
                hints: None,
            })
            .collect(),
    })
}

fn planned(changes: Vec<Change>) -> Planned {
    let mut fold = Fold::default();
    for change in changes {
        fold.apply(change);
    }
    let policy = Policy::of(NodeName::new("edge-1"));
    let catalog = fold.catalog();
    let reachability = Reachability::default();
    Planned {
        plan: Arc::new(plan(&catalog, &reachability, &policy)),
        catalog,
        reachability,
        policy,
        destinations: Arc::new(Destinations::default()),
    }
}

fn cluster() -> Planned {
    let labelled = Service {
        filter_label: true,
        ..service("default/theirs", Some("10.96.0.2"))
    };
    planned(vec![
        Change::Service(service("default/web", Some("10.96.0.1"))),
        Change::Service(service("shop/web", Some("10.96.0.3"))),
        Change::Service(labelled),
        Change::Service(service("default/headless", None)),
        slice(
            "web",
            &[
                ("10.244.0.1", EndpointState::NotReady),
                ("10.244.0.2", EndpointState::Ready),
            ],
        ),
    ])
}

fn asked(query: &str) -> AgentAnswer {
    answer(&query.parse().unwrap(), Some(&cluster()), &|_| Vec::new())
}

#[test]
fn a_service_is_found_by_name_in_any_namespace_and_by_address() {
    let names = |query| -> Vec<String> {
        let found = asked(query).services;
        found.into_iter().map(|service| service.name).collect()
    };
    assert_eq!(names("web"), ["default/web", "shop/web"]);
    assert_eq!(names("shop/web"), ["shop/web"]);
    assert_eq!(names("10.96.0.1:80"), ["default/web"]);
    assert_eq!(names("10.96.0.9"), [""; 0]);
}

#[test]
fn only_the_ports_that_were_meant_are_explained_and_the_others_named() {
    let service = &asked("default/web:http").services[0];
    assert_eq!(service.ports.len(), 1);
    assert_eq!(service.ports[0].name, "default/web:http");
    assert_eq!(service.other_ports, ["default/web:https"]);
    assert_eq!(asked("10.96.0.1:443").services[0].ports[0].port, 443);
}

#[test]
fn endpoints_are_told_the_used_ones_first_with_why_the_others_are_not() {
    let service = &asked("default/web:http").services[0];
    let portal = &service.ports[0].portals[0];
    assert_eq!(portal.decision, Decision::Forward);
    let told: Vec<_> = portal
        .endpoints
        .iter()
        .map(|e| (e.address.as_str(), e.used, e.why_not.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            ("10.244.0.2:8080", true, None),
            ("10.244.0.1:8080", false, Some("not ready")),
        ]
    );
}

#[test]
fn every_endpoint_says_by_which_way_it_is_reached_and_why() {
    let reasons = [
        (WayReason::OwnNode, "natively: on this node"),
        (WayReason::NoNode, "natively: on no node of the cluster"),
        (
            WayReason::NoTunnel,
            "natively: modules.edgeTunnel is not enabled here",
        ),
        (
            WayReason::NoPeer,
            "natively: its node is no peer of the tunnel",
        ),
        (
            WayReason::Peer,
            "through the tunnel to node edge-2: its node's agent has not proved its key without \
             the tunnel",
        ),
        (
            WayReason::Verified,
            "natively: its node's agent proved its key there, without the tunnel",
        ),
        (
            WayReason::HintedDirect,
            "natively: modules.edgeProxy.reachability.overrides says so",
        ),
        (
            WayReason::HintedTunnel,
            "through the tunnel to node edge-2: modules.edgeProxy.reachability.overrides says so",
        ),
    ];
    for (reason, told) in reasons {
        assert_eq!(path(reason, Some(&NodeName::new("edge-2"))), told);
    }
    let service = &asked("default/web:http").services[0];
    let endpoint = &service.ports[0].portals[0].endpoints[0];
    assert_eq!(endpoint.path, "natively: on this node");
}

#[test]
fn a_port_without_endpoints_is_refused_and_says_why() {
    let service = &asked("default/web:https").services[0];
    let portal = &service.ports[0].portals[0];
    assert_eq!(portal.decision, Decision::Refuse);
    assert_eq!(portal.why, "has no ready endpoints");
}

#[test]
fn filtered_and_headless_services_say_so() {
    let filtered = &asked("theirs").services[0];
    assert!(
        filtered
            .left_alone
            .as_ref()
            .unwrap()
            .contains("filter label")
    );
    let portal = &filtered.ports[0].portals[0];
    assert_eq!(portal.decision, Decision::LeaveAlone);
    let headless = &asked("headless").services[0];
    assert!(headless.left_alone.as_ref().unwrap().contains("headless"));
    assert!(headless.ports[0].portals.is_empty());
}

#[test]
fn wrong_names_get_near_ones() {
    assert_eq!(asked("headles").near, ["default/headless"]);
    assert_eq!(asked("elsewhere/theirs").near, ["default/theirs"]);
    assert_eq!(asked("defalt/web").near, ["default/web", "shop/web"]);
    assert!(asked("nothing-like-it").near.is_empty());
}

#[test]
fn an_endpoint_that_is_left_out_says_for_how_long() {
    let left_out = |frontend: &Frontend| {
        vec![LeftOut {
            name: edgemesh_catalog::ServicePortName {
                service: ObjectName::new("default", "web"),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            frontend: *frontend,
            endpoint: "10.244.0.2:8080".parse().unwrap(),
            failures: 3,
            remaining: Duration::from_millis(3500),
        }]
    };
    let query = "default/web:http".parse().unwrap();
    let answer = answer(&query, Some(&cluster()), &left_out);
    let endpoint = &answer.services[0].ports[0].portals[0].endpoints[0];
    assert_eq!(
        endpoint.left_out.as_deref(),
        Some("3 failures in a row, tried again in 4 s")
    );
}

#[test]
fn without_a_plan_nothing_is_claimed() {
    let answer = answer(&"web".parse().unwrap(), None, &|_| Vec::new());
    assert_eq!(answer, AgentAnswer::default());
}

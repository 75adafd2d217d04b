use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::{
    Catalog, Change, Endpoint, EndpointHints, EndpointPort, EndpointSlice, EndpointState, Fold,
    NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy,
};
use proptest::prelude::*;

use super::{Unused, endpoint_reasons};
use crate::{Policy, Reachability, Target, WayReason, plan};

const STATES: [EndpointState; 3] = [
    EndpointState::Ready,
    EndpointState::ServingTerminating,
    EndpointState::NotReady,
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn policy() -> Policy {
    Policy::of(NodeName::new("here"))
}

fn web(policy: TrafficPolicy) -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![ip("10.96.0.1")],
        headless: false,
        filter_label: false,
        session_affinity: None,
        internal_traffic_policy: policy,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
    }
}

fn endpoint(address: &str, node: &str, state: EndpointState) -> Endpoint {
    Endpoint {
        address: ip(address),
        node: Some(NodeName::new(node)),
        state,
        hints: None,
    }
}

fn hinted(endpoint: Endpoint, node: &str) -> Endpoint {
    Endpoint {
        hints: Some(Box::new(EndpointHints {
            zones: vec![],
            nodes: vec![NodeName::new(node)],
        })),
        ..endpoint
    }
}

fn cluster(service: Service, endpoints: Vec<Endpoint>) -> Catalog {
    let mut fold = Fold::default();
    fold.apply(Change::Service(service));
    fold.apply(Change::Slice(EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: "web".into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints,
    }));
    fold.catalog()
}

/// Last number of each address, and why it is not used.
fn reasons(service: &Service, endpoints: Vec<Endpoint>) -> Vec<(String, Option<Unused>)> {
    let catalog = cluster(service.clone(), endpoints);
    endpoint_reasons(
        &catalog,
        &Reachability::default(),
        &policy(),
        service,
        &service.ports[0],
        service.cluster_ips[0],
    )
    .into_iter()
    .map(|reason| (reason.address.ip().to_string(), reason.unused))
    .collect()
}

fn expect(found: &[(String, Option<Unused>)], wanted: &[(&str, Option<Unused>)]) {
    let found: Vec<_> = found.iter().map(|(a, u)| (a.as_str(), *u)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn every_endpoint_is_told_of_with_the_reason_why_it_is_not_used() {
    let found = reasons(
        &web(TrafficPolicy::Cluster),
        vec![
            endpoint("10.0.0.3", "there", EndpointState::ServingTerminating),
            endpoint("10.0.0.1", "here", EndpointState::Ready),
            endpoint("10.0.0.2", "there", EndpointState::NotReady),
            endpoint("fd00::1", "here", EndpointState::Ready),
            endpoint("127.0.0.1", "here", EndpointState::Ready),
        ],
    );
    expect(
        &found,
        &[
            ("10.0.0.1", None),
            ("10.0.0.2", Some(Unused::NotReady)),
            ("10.0.0.3", Some(Unused::Terminating)),
            ("127.0.0.1", Some(Unused::NoEndpointAddress)),
            ("fd00::1", Some(Unused::OtherFamily)),
        ],
    );
}

#[test]
fn every_endpoint_is_told_of_with_the_way_to_it_and_why_used_or_not() {
    let service = web(TrafficPolicy::Cluster);
    let endpoints = vec![
        endpoint("10.0.0.1", "here", EndpointState::Ready),
        endpoint("10.0.0.2", "peer", EndpointState::NotReady),
        endpoint("10.0.0.3", "stranger", EndpointState::Ready),
    ];
    let ways: Vec<WayReason> = endpoint_reasons(
        &cluster(service.clone(), endpoints),
        &Reachability::with_peers([NodeName::new("peer")]),
        &policy(),
        &service,
        &service.ports[0],
        service.cluster_ips[0],
    )
    .into_iter()
    .map(|reason| reason.way)
    .collect();
    assert_eq!(
        ways,
        [WayReason::OwnNode, WayReason::Peer, WayReason::NoPeer]
    );
}

#[test]
fn endpoints_of_other_nodes_are_told_apart_from_those_hinted_for_others() {
    let ready = |address, node| endpoint(address, node, EndpointState::Ready);
    let local = reasons(
        &web(TrafficPolicy::Local),
        vec![ready("10.0.0.1", "here"), ready("10.0.0.2", "there")],
    );
    expect(
        &local,
        &[("10.0.0.1", None), ("10.0.0.2", Some(Unused::OtherNode))],
    );
    let by_hints = reasons(
        &web(TrafficPolicy::Cluster),
        vec![
            hinted(ready("10.0.0.1", "here"), "here"),
            hinted(ready("10.0.0.2", "there"), "there"),
        ],
    );
    expect(
        &by_hints,
        &[
            ("10.0.0.1", None),
            ("10.0.0.2", Some(Unused::HintedElsewhere)),
        ],
    );
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let hint = prop::option::of(prop_oneof![Just("here"), Just("there")]);
    let node = prop_oneof![Just("here"), Just("there")];
    (1_u8..6, node, 0_usize..3, hint).prop_map(|(n, node, state, hint)| {
        let plain = endpoint(&format!("10.0.0.{n}"), node, STATES[state]);
        match hint {
            Some(hint) => hinted(plain, hint),
            None => plain,
        }
    })
}

proptest! {
    #[test]
    fn those_without_a_reason_are_exactly_those_that_the_plan_leads_to(
        endpoints in prop::collection::vec(any_endpoint(), 0..8),
        local in any::<bool>(),
    ) {
        let traffic = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let service = web(traffic);
        let catalog = cluster(service.clone(), endpoints);
        let planned = plan(&catalog, &Reachability::default(), &policy());
        let target = &planned.ports().next().unwrap().portals[0].target;
        let used: Vec<SocketAddr> = match target {
            Target::Forward { endpoints, .. } => endpoints.iter().map(|e| e.address).collect(),
            Target::Refuse(_) | Target::LeaveAlone(_) => vec![],
        };
        let mut told: Vec<SocketAddr> = endpoint_reasons(
            &catalog, &Reachability::default(), &policy(), &service, &service.ports[0],
            service.cluster_ips[0],
        )
        .into_iter()
        .filter(|reason| reason.unused.is_none())
        .map(|reason| reason.address)
        .collect();
        told.dedup();
        prop_assert_eq!(told, used);
    }
}

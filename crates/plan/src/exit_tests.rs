use edgemesh_catalog::{
    Change, Endpoint, EndpointPort, EndpointSlice, EndpointState, Fold, NodeName, ObjectName,
    ServiceKind, ServicePort, TrafficPolicy,
};

use super::*;
use crate::FilterMode;

const ENDPOINT: &str = "10.244.1.2:8080";

#[test]
fn endpoint_of_this_node_may_be_dialled_whatever_its_state() {
    for state in [
        EndpointState::Ready,
        EndpointState::ServingTerminating,
        EndpointState::NotReady,
    ] {
        let exits = exits_of([
            Change::Service(web()),
            slice([Endpoint { state, ..here() }]),
        ]);
        assert_eq!(ask(&exits, "http", Protocol::Tcp, ENDPOINT), Ok(()));
    }
}

#[test]
fn endpoints_of_other_nodes_and_of_none_may_not() {
    for node in [Some("there"), None] {
        let elsewhere = Endpoint {
            node: node.map(NodeName::new),
            ..here()
        };
        let exits = exits_of([Change::Service(web()), slice([elsewhere])]);
        assert_eq!(
            ask(&exits, "http", Protocol::Tcp, ENDPOINT),
            Err(NotExitable::NotAnEndpoint)
        );
    }
}

#[test]
fn address_port_protocol_and_name_must_all_be_those_of_the_service_port() {
    let exits = exits_of([Change::Service(web()), slice([here()])]);
    let cases = [
        ("http", Protocol::Tcp, "10.244.1.3:8080"),
        ("http", Protocol::Tcp, "10.244.1.2:22"),
        ("http", Protocol::Tcp, "127.0.0.1:8080"),
        ("http", Protocol::Tcp, "[::ffff:10.244.1.2]:8080"),
        ("http", Protocol::Udp, ENDPOINT),
        ("http", Protocol::Sctp, ENDPOINT),
        ("", Protocol::Tcp, ENDPOINT),
        // The slice has it, the Service does not.
        ("debug", Protocol::Tcp, "10.244.1.2:6060"),
    ];
    for (port, protocol, endpoint) in cases {
        assert_eq!(
            ask(&exits, port, protocol, endpoint),
            Err(NotExitable::NotAnEndpoint),
            "{port} {protocol} {endpoint}"
        );
    }
}

#[test]
fn filtered_service_is_told_apart_from_an_unknown_one() {
    let labelled = Service {
        filter_label: true,
        ..web()
    };
    let exits = exits_of([Change::Service(labelled), slice([here()])]);
    assert_eq!(
        ask(&exits, "http", Protocol::Tcp, ENDPOINT),
        Err(NotExitable::Filtered)
    );
    let only_slice = exits_of([slice([here()])]);
    assert_eq!(
        ask(&only_slice, "http", Protocol::Tcp, ENDPOINT),
        Err(NotExitable::NotAnEndpoint)
    );
}

#[test]
fn inverted_filter_lets_only_labelled_services_out() {
    let inverted = Policy {
        filter: FilterMode::IfLabelDoesNotExist,
        ..policy()
    };
    let ask_for = |filter_label| {
        let service = Service {
            filter_label,
            ..web()
        };
        let catalog = catalog([Change::Service(service), slice([here()])]);
        let exits = Exits::new(catalog, inverted.clone());
        ask(&exits, "http", Protocol::Tcp, ENDPOINT)
    };
    assert_eq!(ask_for(true), Ok(()));
    assert_eq!(ask_for(false), Err(NotExitable::Filtered));
}

#[test]
fn service_that_can_have_no_portal_has_no_exit() {
    let headless = Service {
        headless: true,
        cluster_ips: vec![],
        ..web()
    };
    let pending = Service {
        cluster_ips: vec![],
        ..web()
    };
    for service in [headless, pending] {
        let exits = exits_of([Change::Service(service), slice([here()])]);
        assert_eq!(
            ask(&exits, "http", Protocol::Tcp, ENDPOINT),
            Err(NotExitable::NotAnEndpoint)
        );
    }
}

#[test]
fn endpoint_that_is_a_cluster_ip_would_be_a_loop() {
    let other = Service {
        name: ObjectName::new("elsewhere", "labelled"),
        filter_label: true,
        cluster_ips: vec!["10.244.1.2".parse().unwrap()],
        ..web()
    };
    let exits = exits_of([
        Change::Service(web()),
        Change::Service(other),
        slice([here()]),
    ]);
    assert_eq!(
        ask(&exits, "http", Protocol::Tcp, ENDPOINT),
        Err(NotExitable::NotAnEndpoint)
    );
}

#[test]
fn address_of_the_host_itself_is_no_endpoint_whoever_lists_it() {
    for address in ["127.0.0.1", "0.0.0.0", "169.254.169.254", "::1", "ff02::1"] {
        let listed = Endpoint {
            address: address.parse().unwrap(),
            ..here()
        };
        let exits = exits_of([Change::Service(web()), slice([listed])]);
        let endpoint = SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        assert_eq!(
            ask(&exits, "http", Protocol::Tcp, &endpoint),
            Err(NotExitable::NotAnEndpoint),
            "{address}"
        );
    }
}

fn ask(exits: &Exits, port: &str, protocol: Protocol, endpoint: &str) -> Result<(), NotExitable> {
    let service_port = ServicePortName {
        service: web().name,
        port: port.into(),
        protocol,
    };
    exits.may_exit(&service_port, endpoint.parse().unwrap())
}

fn exits_of(changes: impl IntoIterator<Item = Change>) -> Exits {
    Exits::new(catalog(changes), policy())
}

fn catalog(changes: impl IntoIterator<Item = Change>) -> Catalog {
    let mut fold = Fold::default();
    for change in changes {
        fold.apply(change);
    }
    fold.catalog()
}

fn policy() -> Policy {
    Policy::of(NodeName::new("here"))
}

fn web() -> Service {
    let port = |protocol| ServicePort {
        name: "http".into(),
        protocol,
        port: 80,
    };
    Service {
        name: ObjectName::new("default", "web"),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        headless: false,
        filter_label: false,
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        ports: vec![port(Protocol::Tcp), port(Protocol::Sctp)],
    }
}

fn here() -> Endpoint {
    Endpoint {
        address: "10.244.1.2".parse().unwrap(),
        node: Some(NodeName::new("here")),
        state: EndpointState::Ready,
        hints: None,
    }
}

fn slice(endpoints: impl IntoIterator<Item = Endpoint>) -> Change {
    let port = |name: &str, protocol, port| EndpointPort {
        name: name.into(),
        protocol,
        port,
    };
    Change::Slice(EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: "web".into(),
        ports: vec![
            port("http", Protocol::Tcp, 8080),
            port("http", Protocol::Sctp, 8080),
            port("debug", Protocol::Tcp, 6060),
        ],
        endpoints: endpoints.into_iter().collect(),
    })
}

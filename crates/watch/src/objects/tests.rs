//! Objects as the API server and strangers write them.

use std::net::IpAddr;
use std::time::Duration;

use edgemesh_catalog::{EndpointState, FILTER_LABEL, Protocol, ServiceKind, TrafficPolicy};
use serde_json::{Value, json};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn problems<T>(reading: &Reading<T>) -> Vec<String> {
    reading.problems.iter().map(ToString::to_string).collect()
}

fn service(spec: impl Into<Value>) -> Reading<edgemesh_catalog::Service> {
    let metadata = json!({"name": "web", "namespace": "shop"});
    let object = json!({"metadata": metadata, "spec": spec.into()});
    read_service(&object, &mut KnownNames::default())
}

fn good<T>(reading: Reading<T>) -> T {
    assert_eq!(problems(&reading), Vec::<String>::new());
    reading.object.expect("an object")
}

#[test]
fn service_is_read_whole() {
    let read = good(read_service(
        &json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop",
                "labels": {FILTER_LABEL: ""},
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1", "fd00::1"],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "internalTrafficPolicy": "Local",
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                ],
            },
        }),
        &mut KnownNames::default(),
    ));
    assert_eq!(read.name, ObjectName::new("shop", "web"));
    assert_eq!(read.kind, ServiceKind::LoadBalancer);
    assert_eq!(read.cluster_ips, [ip("10.96.0.1"), ip("fd00::1")]);
    assert!(read.filter_label && !read.headless);
    assert_eq!(read.session_affinity, Some(Duration::from_secs(60)));
    assert_eq!(read.internal_traffic_policy, TrafficPolicy::Local);
    let ports: Vec<_> = read
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port))
        .collect();
    assert_eq!(
        ports,
        [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]
    );
}

#[test]
fn what_is_left_out_is_filled_in_as_the_api_server_does() {
    let object = json!({
        "metadata": {"name": "web"},
        "spec": {
            "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80}],
        },
    });
    let read = good(read_service(&object, &mut KnownNames::default()));
    assert_eq!(read.name.namespace(), "default");
    assert_eq!(read.kind, ServiceKind::ClusterIp);
    assert_eq!(read.cluster_ips, [ip("10.96.0.1")]);
    assert_eq!(read.session_affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(read.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(read.ports[0].protocol, Protocol::Tcp);
    assert_eq!(&*read.ports[0].name, "");
}

#[test]
fn headless_and_external_name_services_have_no_cluster_ip() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
    ] {
        let read = good(service(spec));
        assert!(read.headless && read.cluster_ips.is_empty());
    }
    let stale = good(service(json!({
        "type": "ExternalName", "externalName": "example.org", "clusterIP": "10.96.0.1",
    })));
    assert_eq!(stale.kind, ServiceKind::ExternalName);
    assert!(!stale.headless && stale.cluster_ips.is_empty());
}

#[test]
fn unassigned_cluster_ip_is_no_problem() {
    let read = good(service(json!({"clusterIP": "", "ports": [{"port": 80}]})));
    assert!(!read.headless && read.cluster_ips.is_empty());
}

#[test]
fn mistakes_of_strangers_are_named_and_the_rest_is_used() {
    let reading = service(json!({
        "type": "Clusterip",
        "clusterIPs": ["10.96.0.256", "fd00::1", "fd00::1", 7],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}},
        "internalTrafficPolicy": "local",
        "ports": [
            {"port": 0}, {"port": 65_536}, {"port": "http"}, {"port": -1}, {}, 9,
            {"port": 80, "protocol": "tcp"},
            {"name": 4, "port": 443},
            {"port": 65_535},
        ],
    }));
    assert_eq!(
        problems(&reading),
        [
            "spec.type: \"Clusterip\" is none of ClusterIP, NodePort, LoadBalancer, ExternalName; \
             write one of these (taken for ClusterIP)",
            "spec.clusterIPs[0]: \"10.96.0.256\" is not an IP address; write one such as \
             10.96.0.10 or fd00::10",
            "spec.clusterIPs[3]: 7 is not text; write text",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is no affinity timeout; \
             write seconds from 1 to 86400 (taken for 10800)",
            "spec.internalTrafficPolicy: \"local\" is none of Cluster, Local; write one of these \
             (taken for Cluster)",
            "spec.ports[0].port: 0 is not a port number; write one from 1 to 65535",
            "spec.ports[1].port: 65536 is not a port number; write one from 1 to 65535",
            "spec.ports[2].port: \"http\" is not a whole number; write a whole number",
            "spec.ports[3].port: -1 is not a port number; write one from 1 to 65535",
            "spec.ports[4].port: is missing; write one from 1 to 65535",
            "spec.ports[5].port: is missing; write one from 1 to 65535",
            "spec.ports[6].protocol: \"tcp\" is none of TCP, UDP, SCTP; write one of these",
            "spec.ports[7].name: 4 is not text; write text",
        ]
    );
    let read = reading.object.unwrap();
    assert_eq!(read.cluster_ips, [ip("fd00::1")]);
    assert_eq!(
        read.ports.iter().map(|p| p.port).collect::<Vec<_>>(),
        [443, 65_535]
    );
}

#[test]
fn service_without_spec_or_ports_is_reported_and_kept() {
    let object = json!({"metadata": {"name": "web"}});
    let reading = read_service(&object, &mut KnownNames::default());
    assert_eq!(problems(&reading), ["spec: is missing"]);
    assert!(reading.object.unwrap().ports.is_empty());

    let reading = service(json!({"clusterIP": "10.96.0.1"}));
    assert_eq!(
        problems(&reading),
        ["spec.ports: is missing; a Service with a ClusterIP needs a port"]
    );
}

#[test]
fn object_without_a_name_is_reported_and_left_out() {
    for nameless in [json!({}), json!({"metadata": {"name": ""}}), json!(null)] {
        let reading = read_service(&nameless, &mut KnownNames::default());
        assert_eq!(problems(&reading), ["metadata.name: is missing"]);
        assert!(reading.object.is_none());
    }
}

fn slice(mut object: Value) -> Reading<edgemesh_catalog::EndpointSlice> {
    let metadata = json!({
        "name": "web-abc", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "web"},
    });
    object["metadata"] = metadata;
    read_endpoint_slice(&object, &mut KnownNames::default())
}

#[test]
fn slice_is_read_whole() {
    let read = good(slice(json!({
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "any", "port": null}],
        "endpoints": [
            {
                "addresses": ["10.244.1.2", "10.244.1.3"], "nodeName": "edge-1", "zone": "a",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "edge-1"}]},
            },
            {"addresses": ["10.244.1.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.1.5"]},
        ],
    })));
    assert_eq!(read.service_name(), ObjectName::new("shop", "web"));
    assert_eq!(
        read.ports.len(),
        1,
        "a port without a number cannot be dialled"
    );
    let endpoints: Vec<_> = read
        .endpoints
        .iter()
        .map(|e| (e.address, e.state))
        .collect();
    assert_eq!(
        endpoints,
        [
            (ip("10.244.1.2"), EndpointState::Ready),
            (ip("10.244.1.4"), EndpointState::ServingTerminating),
            (ip("10.244.1.5"), EndpointState::Ready),
        ]
    );
    assert_eq!(
        read.endpoints[0]
            .node
            .as_ref()
            .map(edgemesh_catalog::NodeName::as_str),
        Some("edge-1")
    );
    let hints = read.endpoints[0].hints.as_ref().unwrap();
    assert_eq!(&*hints.zones[0], "a");
    assert_eq!(hints.nodes[0].as_str(), "edge-1");
    assert!(read.endpoints[1].hints.is_none());
}

#[test]
fn slice_of_no_service_or_of_host_names_is_of_no_interest() {
    let object = json!({"metadata": {"name": "lonely"}, "addressType": "IPv4"});
    let lonely = read_endpoint_slice(&object, &mut KnownNames::default());
    let names = slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]}));
    for reading in [lonely, names] {
        assert!(reading.object.is_none() && reading.problems.is_empty());
    }
}

#[test]
fn mistakes_in_a_slice_cost_only_their_endpoint() {
    let reading = slice(json!({
        "addressType": "IPv4",
        "ports": [{"port": 0}, {"port": 80}],
        "endpoints": [
            {"addresses": []}, {}, {"addresses": ["web.local"]}, {"addresses": ["fd00::2"]},
            {"addresses": ["10.244.1.2"], "conditions": "ready", "nodeName": 5},
        ],
    }));
    assert_eq!(
        problems(&reading),
        [
            "ports[0].port: 0 is not a port number; write one from 1 to 65535",
            "endpoints[0].addresses: is empty; write one address",
            "endpoints[1].addresses: is empty; write one address",
            "endpoints[2].addresses[0]: \"web.local\" is not an IP address; write one such as \
             10.96.0.10 or fd00::10",
            "endpoints[3].addresses[0]: fd00::2 is not of the slice's addressType; put it into a \
             slice of its own family",
            "endpoints[4].nodeName: 5 is not text; write text",
            "endpoints[4].conditions: \"ready\" is not a mapping; write a mapping",
        ]
    );
    let read = reading.object.unwrap();
    assert_eq!(read.endpoints.len(), 1);
    assert_eq!(read.endpoints[0].state, EndpointState::Ready);
}

#[test]
fn endpoints_become_a_slice_per_subset_and_family() {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "subsets": [
            {
                "addresses": [
                    {"ip": "10.244.1.2", "nodeName": "edge-1", "targetRef": {"name": "pod"}},
                    {"ip": "fd00:10::2"},
                ],
                "notReadyAddresses": [{"ip": "10.244.1.3"}],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            },
            {"notReadyAddresses": [{"ip": "10.244.1.9"}], "ports": [{"port": 9090}]},
            {"ports": [{"port": 9091}]},
        ],
    });
    let read = good(read_endpoints(&object, &mut KnownNames::default()));
    let slices: Vec<_> = read
        .slices
        .iter()
        .map(|slice| {
            assert_eq!(slice.service_name(), read.name);
            assert!(is_from_endpoints(&slice.name));
            let endpoints: Vec<_> = slice
                .endpoints
                .iter()
                .map(|e| (e.address.to_string(), e.state))
                .collect();
            (slice.name.name(), endpoints, slice.ports[0].port)
        })
        .collect();
    assert_eq!(
        slices,
        [
            (
                "endpoints/web/0-ipv4",
                vec![
                    ("10.244.1.2".to_owned(), EndpointState::Ready),
                    ("10.244.1.3".to_owned(), EndpointState::NotReady),
                ],
                8080
            ),
            (
                "endpoints/web/0-ipv6",
                vec![("fd00:10::2".to_owned(), EndpointState::Ready)],
                8080
            ),
            (
                "endpoints/web/1-ipv4",
                vec![("10.244.1.9".to_owned(), EndpointState::NotReady)],
                9090
            ),
        ]
    );
}

#[test]
fn endpoints_without_subsets_are_empty() {
    let object = json!({"metadata": {"name": "leader-election"}});
    assert!(
        good(read_endpoints(&object, &mut KnownNames::default()))
            .slices
            .is_empty()
    );
}

#[test]
fn node_is_reduced_to_zone_pod_networks_and_addresses() {
    let read = good(read_node(
        &json!({
            "metadata": {
                "name": "edge-1", "labels": {"topology.kubernetes.io/zone": "site-a"},
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "edge-1"},
                    {"type": "InternalIP", "address": "192.168.1.5"},
                    {"type": "ExternalIP", "address": "192.168.1.5"},
                    {"type": "InternalDNS", "address": "edge-1.local"},
                ],
            },
        }),
        &mut KnownNames::default(),
    ));
    assert_eq!(read.zone.as_deref(), Some("site-a"));
    assert_eq!(
        read.pod_cidrs,
        ["10.244.1.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap())
    );
    assert_eq!(read.addresses, [ip("192.168.1.5")]);
}

#[test]
fn of_a_nodes_labels_only_those_are_kept_that_somebody_selects_by() {
    let object = json!({"metadata": {"name": "n", "labels": {"a/site": "x", "b": "y", "c": 1}}});
    let mut names = KnownNames::default();
    assert!(
        read_node(&object, &mut names)
            .object
            .unwrap()
            .labels
            .is_empty()
    );
    names.keep_node_labels(["a/site", "c", "absent"].map(Into::into).into());
    let read = good(read_node(&object, &mut names));
    assert_eq!(read.labels, [("a/site".into(), "x".into())].into());
}

#[test]
fn pod_network_of_an_old_server_is_taken_from_the_single_field() {
    let object = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24"}});
    let read = good(read_node(&object, &mut KnownNames::default()));
    assert_eq!(read.pod_cidrs.len(), 1);

    let bad = json!({
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": 2}},
        "spec": {"podCIDR": "10.244.1.0"},
    });
    let reading = read_node(&bad, &mut KnownNames::default());
    assert_eq!(
        problems(&reading),
        [
            "metadata.labels.topology.kubernetes.io/zone: 2 is not text; write text",
            "spec.podCIDR: is not a CIDR; write one such as 10.244.1.0/24",
        ]
    );
}

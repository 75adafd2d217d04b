use edgemesh_catalog::{
    Change, Endpoint, EndpointPort, EndpointSlice, EndpointState, Fold, Node, ObjectName, Protocol,
};
use edgemesh_plan::{OverrideScope, Way};
use edgemesh_tunnel::{NodeKey, PeerBook};

use super::*;

/// A cluster of `own` and its peers.
struct Cluster {
    fold: Fold,
    own: Own,
    endpoints: Vec<Endpoint>,
    overrides: Vec<Override>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            fold: Fold::default(),
            own: Own {
                interfaces: ips(&["127.0.0.1", "169.254.96.16", "10.244.0.1", "192.168.0.10"]),
                never: vec!["169.254.96.16".parse().unwrap()],
            },
            endpoints: Vec::new(),
            overrides: Vec::new(),
        };
        cluster.node("own", &["10.244.0.0/24"], &["192.168.0.10"]);
        cluster
    }

    fn node(&mut self, name: &str, pods: &[&str], addresses: &[&str]) {
        self.fold.apply(Change::Node(Node {
            name: NodeName::new(name),
            zone: None,
            pod_cidrs: pods.iter().map(|of| of.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|of| of.parse().unwrap()).collect(),
            labels: Default::default(),
        }));
    }

    /// A peer that answers at these addresses of its pods' networks.
    fn peer(&mut self, name: &str, pods: &[&str], addresses: &[&str], answers: &[&str]) {
        self.node(name, pods, addresses);
        let key = NodeKey::generate();
        self.fold.apply(Change::MeshNode(MeshNode {
            name: NodeName::new(name),
            uid: None,
            public_key: key.public(),
            name_signature: Some(Box::new(key.sign_name(&NodeName::new(name)))),
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: Some(Box::new(ProbePlaces {
                port: 20010,
                pod_addresses: answers.iter().map(|of| of.parse().unwrap()).collect(),
            })),
            version: "".into(),
            boot_id: "b".into(),
            previous_key: None,
        }));
    }

    fn endpoint(&mut self, node: Option<&str>, address: &str) {
        self.endpoints.push(Endpoint {
            address: address.parse().unwrap(),
            node: node.map(NodeName::new),
            state: EndpointState::Ready,
            hints: None,
        });
        self.fold.apply(Change::Slice(EndpointSlice {
            name: ObjectName::new("default", "web-1"),
            service: "web".into(),
            ports: vec![EndpointPort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            endpoints: self.endpoints.clone(),
        }));
    }

    fn catalog(&self) -> Catalog {
        self.fold.catalog()
    }

    /// Where is probed: node, address, and the networks that it is about.
    fn probed(&self) -> Vec<(String, String, Vec<String>)> {
        let own = NodeName::new("own");
        let peers = PeerBook::default().follow(&self.catalog(), &own, &[]);
        places(&self.catalog(), &peers, &self.overrides, &own, &self.own)
            .into_iter()
            .flat_map(|(node, of)| {
                of.places.into_iter().map(move |(ip, networks)| {
                    let networks = networks.iter().map(ToString::to_string).collect();
                    (node.to_string(), ip.to_string(), networks)
                })
            })
            .collect()
    }
}

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn probe(node: &str, ip: &str, network: &str) -> (String, String, Vec<String>) {
    (node.to_owned(), ip.to_owned(), vec![network.to_owned()])
}

#[test]
fn peers_are_probed_in_the_networks_that_their_endpoints_are_in() {
    let mut cluster = Cluster::new();
    let pods = ["10.244.1.0/24", "fd00:1::/64"];
    cluster.peer(
        "cloud",
        &pods,
        &["192.168.0.11", "203.0.113.5"],
        &["10.244.1.1", "fd00:1::1"],
    );
    cluster.peer("idle", &["10.244.2.0/24"], &[], &["10.244.2.1"]);
    assert_eq!(cluster.probed(), []);
    cluster.endpoint(Some("cloud"), "10.244.1.7");
    assert_eq!(
        cluster.probed(),
        [probe("cloud", "10.244.1.1", "10.244.1.0/24")]
    );
    cluster.endpoint(Some("cloud"), "203.0.113.5");
    cluster.endpoint(Some("cloud"), "fd00:1::7");
    assert_eq!(
        cluster.probed(),
        [
            probe("cloud", "10.244.1.1", "10.244.1.0/24"),
            probe("cloud", "203.0.113.5", "203.0.113.5/32"),
            probe("cloud", "fd00:1::1", "fd00:1::/64"),
        ]
    );
}

#[test]
fn where_the_operator_has_spoken_nobody_is_probed() {
    let mut cluster = Cluster::new();
    cluster.peer(
        "cloud",
        &["10.244.1.0/24"],
        &["203.0.113.5"],
        &["10.244.1.1"],
    );
    cluster.endpoint(Some("cloud"), "10.244.1.7");
    cluster.endpoint(Some("cloud"), "203.0.113.5");
    let of_pods = OverrideScope::Networks(vec!["10.244.0.0/16".parse().unwrap()]);
    cluster.overrides = vec![Override {
        scope: of_pods,
        way: Way::Native,
    }];
    assert_eq!(
        cluster.probed(),
        [probe("cloud", "203.0.113.5", "203.0.113.5/32")]
    );
    cluster.overrides.push(Override {
        scope: OverrideScope::Nodes([NodeName::new("cloud")].into()),
        way: Way::Tunnel,
    });
    assert_eq!(cluster.probed(), []);
}

#[test]
fn addresses_outside_its_pod_networks_are_no_proof_for_its_pods() {
    let mut cluster = Cluster::new();
    // What the peer says of its networks does not count where the cluster says something.
    cluster.peer(
        "cloud",
        &["10.244.1.0/24"],
        &[],
        &["10.244.2.1", "192.168.0.11"],
    );
    cluster.endpoint(Some("cloud"), "10.244.1.7");
    cluster.endpoint(Some("cloud"), "10.244.2.7");
    assert_eq!(cluster.probed(), []);
}

#[test]
fn what_could_be_this_host_is_never_probed() {
    let mut cluster = Cluster::new();
    cluster.peer(
        "twin",
        &["10.244.0.0/24"],
        &["192.168.0.10"],
        &["10.244.0.1", "10.244.0.9"],
    );
    cluster.peer("wide", &["10.0.0.0/8"], &[], &["10.7.0.1"]);
    // Its pods' network is the one that this host's interface is in.
    cluster.peer("lan", &["192.168.0.0/24"], &[], &["192.168.0.77"]);
    for (node, address) in [
        ("twin", "10.244.0.7"),
        ("twin", "192.168.0.10"),
        ("wide", "10.7.0.7"),
        ("lan", "192.168.0.7"),
    ] {
        cluster.endpoint(Some(node), address);
    }
    assert_eq!(cluster.probed(), []);
}

#[test]
fn peers_that_answer_no_probes_and_nodes_that_are_no_peers_are_not_probed() {
    let mut cluster = Cluster::new();
    cluster.node("stranger", &["10.244.3.0/24"], &["192.168.0.13"]);
    cluster.endpoint(Some("stranger"), "192.168.0.13");
    cluster.endpoint(None, "203.0.113.9");
    assert_eq!(cluster.probed(), []);
}

#[test]
fn a_network_is_probed_at_two_addresses_at_most() {
    let mut cluster = Cluster::new();
    let answers = ["10.244.1.0", "10.244.1.1", "10.244.1.2", "10.244.1.3"];
    cluster.peer("cloud", &["10.244.1.0/24"], &[], &answers);
    cluster.endpoint(Some("cloud"), "10.244.1.7");
    assert_eq!(cluster.probed().len(), 2);
}

#[test]
fn this_node_tells_its_addresses_within_its_pod_networks_and_answers_at_its_others_too() {
    let cluster = Cluster::new();
    let (catalog, own) = (cluster.catalog(), NodeName::new("own"));
    let told = own_places(&catalog, &own, &cluster.own, 20010).unwrap();
    assert_eq!(told.port, 20010);
    assert_eq!(
        told.pod_addresses,
        ["10.244.0.1".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        listening_places(&catalog, &own, &cluster.own),
        ips(&["10.244.0.1", "192.168.0.10"])
    );
    assert_eq!(own_places(&Catalog::default(), &own, &cluster.own, 1), None);
}

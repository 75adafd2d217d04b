//! Rules that go on from earlier ones are the rules.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use edgemesh_catalog::{
    Catalog, Change, Endpoint, EndpointPort, EndpointSlice, EndpointState, Fold, Node, NodeName,
    ObjectName, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy,
};
use edgemesh_plan::{Earlier, Policy, Reachability, plan, plan_since};
use edgemesh_rules::Mark;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const ADDRESSES: [[&str; 3]; 2] = [
    ["10.96.0.1", "10.96.0.2", "10.96.0.3"],
    ["fd00:96::1", "fd00:96::2", "fd00:96::3"],
];
const INTERCEPTS: [&str; 2] = ["169.254.96.16", "fd00:ed6e::1"];

/// Something that happens to the cluster, or to the forwarder.
#[derive(Clone, Debug)]
enum Event {
    Service(u8, Vec<usize>, Vec<u16>, bool),
    Gone(u8),
    Endpoints(u8, Vec<u8>),
    /// Where this node's pods are no pods of its own.
    Address(u8),
    Peers(bool),
    /// Portals of this port can't be served.
    Fails(Option<u16>),
    /// Portals of this port have another port of the agent.
    Moves(u16),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let port = || 1_u16..4;
    let event = prop_oneof![
        4 => (0_u8..5, vec(0_usize..3, 0..3), vec(port(), 1..3), any::<bool>()).prop_map(
            |(name, ips, ports, sticky)| Event::Service(name, ips, ports, sticky)
        ),
        1 => (0_u8..5).prop_map(Event::Gone),
        4 => (0_u8..5, vec(1_u8..6, 0..5)).prop_map(|(name, pods)| Event::Endpoints(name, pods)),
        1 => (1_u8..6).prop_map(Event::Address),
        1 => any::<bool>().prop_map(Event::Peers),
        1 => prop::option::of(port()).prop_map(Event::Fails),
        1 => port().prop_map(Event::Moves),
    ];
    vec(event, 1..25)
}

struct World {
    fold: Fold,
    reachability: Reachability,
    fails: Option<u16>,
    moved: BTreeMap<u16, u16>,
}

impl World {
    fn happens(&mut self, event: Event) {
        match event {
            Event::Service(name, ips, ports, sticky) => {
                self.fold.apply(service(name, &ips, &ports, sticky));
            }
            Event::Gone(name) => {
                self.fold.apply(Change::ServiceGone(object(name)));
            }
            Event::Endpoints(name, pods) => {
                for family in 0..2 {
                    self.fold.apply(slice(name, family, &pods));
                }
            }
            Event::Address(pod) => {
                self.fold.apply(here(pod));
            }
            Event::Peers(any) => {
                let peers = any.then(|| NodeName::new("peer"));
                self.reachability = Reachability::with_peers(peers);
            }
            Event::Fails(port) => self.fails = port,
            Event::Moves(port) => *self.moved.entry(port).or_insert(20_000) += 1,
        }
    }

    fn destinations(&self, plan: &Plan) -> Destinations {
        let mut destinations = Destinations::default();
        for (_, portal) in plan.intercepted() {
            let (at, port) = (portal.frontend, portal.frontend.port);
            if self.fails == Some(port) {
                destinations.failed.insert(at, "no socket".to_owned());
            } else {
                let to = self.moved.get(&port).copied().unwrap_or(20_000);
                destinations.ports.insert(at, to);
            }
        }
        destinations
    }
}

fn object(name: u8) -> ObjectName {
    ObjectName::new("default", format!("service-{name}"))
}

fn service(name: u8, ips: &[usize], ports: &[u16], sticky: bool) -> Change {
    let ips = ADDRESSES
        .iter()
        .flat_map(|family| ips.iter().map(|number| family[*number].parse().unwrap()));
    Change::Service(Service {
        name: object(name),
        kind: ServiceKind::ClusterIp,
        cluster_ips: ips.collect(),
        headless: false,
        filter_label: false,
        session_affinity: sticky.then_some(Duration::from_secs(60)),
        internal_traffic_policy: TrafficPolicy::Cluster,
        ports: ports
            .iter()
            .map(|port| ServicePort {
                name: format!("p{port}").into(),
                protocol: Protocol::Tcp,
                port: *port,
            })
            .collect(),
    })
}

/// Pods of all nodes; the higher their number, the farther away.
fn slice(name: u8, family: usize, pods: &[u8]) -> Change {
    let node = |pod: u8| NodeName::new(["here", "there", "peer"][usize::from(pod / 2)]);
    Change::Slice(EndpointSlice {
        name: ObjectName::new("default", format!("service-{name}-{family}")),
        service: format!("service-{name}").into(),
        ports: (1..4)
            .map(|port| EndpointPort {
                name: format!("p{port}").into(),
                protocol: Protocol::Tcp,
                port: 8000 + port,
            })
            .collect(),
        endpoints: pods
            .iter()
            .map(|pod| Endpoint {
                address: pod_address(family, *pod),
                node: Some(node(*pod)),
                state: EndpointState::Ready,
                hints: None,
            })
            .collect(),
    })
}

fn pod_address(family: usize, pod: u8) -> IpAddr {
    let text = [format!("10.244.0.{pod}"), format!("fd00:244::{pod}")];
    text[family].parse().unwrap()
}

fn here(pod: u8) -> Change {
    Change::Node(Node {
        name: NodeName::new("here"),
        zone: None,
        pod_cidrs: Vec::new(),
        addresses: vec![pod_address(0, pod)],
        labels: Default::default(),
    })
}

proptest! {
    #[test]
    fn rules_made_from_those_before_are_those_made_from_scratch(events in events()) {
        let policy = Policy::of(NodeName::new("here"));
        let mut world = World {
            fold: Fold::default(),
            reachability: Reachability::default(),
            fails: None,
            moved: BTreeMap::new(),
        };
        let mut known: Option<(Catalog, Reachability, Plan, Destinations, [Ruleset; 2])> = None;
        for event in events {
            world.happens(event);
            let (catalog, ways) = (world.fold.catalog(), world.reachability.clone());
            let planned = match &known {
                None => plan(&catalog, &ways, &policy),
                Some((catalog_before, ways_before, plan, ..)) => {
                    let earlier = Earlier {
                        catalog: catalog_before,
                        reachability: ways_before,
                        policy: &policy,
                        plan,
                    };
                    plan_since(&catalog, &ways, &policy, earlier)
                }
            };
            let destinations = world.destinations(&planned);
            let basis = Basis {
                plan: &planned,
                own_pods: OwnPods::of(&catalog, &policy),
                destinations: &destinations,
            };
            let both = [0, 1].map(|family| {
                let empty = Ruleset::new(INTERCEPTS[family].parse().unwrap(), 9, Mark::AGENT);
                let before = known.as_ref().map(|(catalog, _, plan, destinations, rules)| Before {
                    rules: &rules[family],
                    basis: Basis {
                        plan,
                        own_pods: OwnPods::of(catalog, &policy),
                        destinations,
                    },
                });
                let rules = ruleset(empty.clone(), basis, before);
                // Nothing is taken from what was planned before but the endpoints' numbers.
                let nothing = (Plan::default(), Destinations::default());
                let elsewhere = NodeName::new("elsewhere");
                let elsewhere = Policy::of(elsewhere);
                let unlike = before.map(|before| Before {
                    basis: Basis {
                        plan: &nothing.0,
                        own_pods: OwnPods::of(&catalog, &elsewhere),
                        destinations: &nothing.1,
                    },
                    ..before
                });
                assert_eq!(rules, ruleset(empty, basis, unlike));
                rules
            });
            known = Some((catalog, ways, planned, destinations, both));
        }
    }
}

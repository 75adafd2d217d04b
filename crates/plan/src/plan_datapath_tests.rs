use edgemesh_catalog::{Catalog, Change, Endpoint, Node, NodeName};

use super::tests::{at, cluster, here_in_zone_a, ip, policy, slice, web};
use crate::{
    Datapath, DatapathMode, Earlier, FamilyFacts, HostFacts, OwnPods, Plan, Policy, Reachability,
    Target, UserMode, plan, plan_since,
};

fn on(node: &str, address: &str) -> Endpoint {
    Endpoint {
        node: Some(NodeName::new(node)),
        ..at(address)
    }
}

fn web_here_and_there() -> Catalog {
    cluster([
        Change::Service(web()),
        slice("a", [on("here", "10.244.0.2"), on("peer", "10.244.1.2")]),
    ])
}

fn datapaths(plan: &Plan) -> Vec<Datapath> {
    plan.intercepted()
        .filter_map(|(_, portal)| match portal.target {
            Target::Forward { datapath, .. } => Some(datapath),
            Target::Refuse(_) | Target::LeaveAlone(_) => None,
        })
        .collect()
}

#[test]
fn endpoint_that_takes_the_tunnel_now_makes_the_kernel_share() {
    let (catalog, policy) = (web_here_and_there(), policy());
    let before = Reachability::default();
    let alone = plan(&catalog, &before, &policy);
    assert_eq!(datapaths(&alone), [Datapath::Kernel]);
    let after = Reachability::with_peers([NodeName::new("peer")]);
    let earlier = Earlier {
        catalog: &catalog,
        reachability: &before,
        policy: &policy,
        plan: &alone,
    };
    let shared = plan_since(&catalog, &after, &policy, earlier);
    assert_eq!(datapaths(&shared), [Datapath::KernelAndAgent]);
}

#[test]
fn what_the_host_or_the_operator_changes_is_decided_anew() {
    let catalog = web_here_and_there();
    let none = Reachability::default();
    let policy = policy();
    let before = plan(&catalog, &none, &policy);
    let not_forwarding = FamilyFacts {
        not_forwarding: Some("ip_forward is 0".into()),
        ..FamilyFacts::default()
    };
    for (changed, why) in [
        (
            Policy {
                datapath: DatapathMode::User,
                ..policy.clone()
            },
            UserMode::Configured,
        ),
        (
            Policy {
                host: HostFacts {
                    ipv4: not_forwarding,
                    ..HostFacts::default()
                },
                ..policy.clone()
            },
            UserMode::NotForwarding,
        ),
    ] {
        let earlier = Earlier {
            catalog: &catalog,
            reachability: &none,
            policy: &policy,
            plan: &before,
        };
        let now = plan_since(&catalog, &none, &changed, earlier);
        assert_eq!(datapaths(&now), [Datapath::User(why)]);
    }
}

#[test]
fn pods_on_the_hosts_own_network_are_no_pods_with_an_address() {
    let node = Node {
        addresses: vec![ip("192.0.2.7")],
        ..here_in_zone_a()
    };
    let catalog = cluster([
        Change::Node(node),
        Change::Service(web()),
        slice(
            "a",
            [
                on("here", "10.244.0.2"),
                on("here", "192.0.2.7"),
                on("peer", "10.244.1.2"),
                at("198.51.100.1"),
            ],
        ),
    ]);
    let policy = policy();
    let own_pods = OwnPods::of(&catalog, &policy);
    let planned = plan(&catalog, &Reachability::default(), &policy);
    let pods: Vec<String> = planned
        .intercepted()
        .filter_map(|(_, portal)| match &portal.target {
            Target::Forward { endpoints, .. } => Some(endpoints),
            Target::Refuse(_) | Target::LeaveAlone(_) => None,
        })
        .flat_map(|endpoints| endpoints.iter())
        .filter(|endpoint| own_pods.has(endpoint))
        .map(|endpoint| endpoint.address.to_string())
        .collect();
    assert_eq!(pods, ["10.244.0.2:8080"]);
}

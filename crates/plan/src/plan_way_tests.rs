use std::collections::BTreeMap;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, Change, Endpoint, NodeName, ObjectName, Service};

use super::tests::{at, cluster, policy, slice, web};
use crate::{Earlier, Plan, Reachability, Target, Way, plan, plan_since};

#[test]
fn endpoints_of_peers_are_planned_through_the_tunnel_and_all_others_natively() {
    let catalog = cluster([
        Change::Service(web()),
        slice(
            "a",
            [
                on(Some("here"), "10.244.0.2"),
                on(Some("peer"), "10.244.1.2"),
                on(Some("stranger"), "10.244.2.2"),
                on(None, "192.0.2.1"),
            ],
        ),
    ]);
    let peers = peers(["here", "peer"]);
    assert_eq!(
        ways(&plan(&catalog, &peers, &policy())),
        [
            ("10.244.0.2:8080".to_owned(), Way::Native),
            ("10.244.1.2:8080".to_owned(), Way::Tunnel),
            ("10.244.2.2:8080".to_owned(), Way::Native),
            ("192.0.2.1:8080".to_owned(), Way::Native),
        ]
    );
}

#[test]
fn new_peer_changes_the_plan_of_its_endpoints_only() {
    let (catalog, before) = (two_services(), peers([]));
    let earlier = plan(&catalog, &before, &policy());
    let after = peers(["peer"]);
    let later = plan_since(
        &catalog,
        &after,
        &policy(),
        Earlier {
            catalog: &catalog,
            reachability: &before,
            policy: &policy(),
            plan: &earlier,
        },
    );
    let shared: Vec<bool> = earlier
        .ports()
        .zip(later.ports())
        .map(|(then, now)| Arc::ptr_eq(then, now))
        .collect();
    assert_eq!(shared, [true, false]);
    assert_eq!(later, plan(&catalog, &after, &policy()));
}

#[test]
fn proof_of_a_peer_changes_the_plan_of_its_endpoints_only_and_so_does_its_loss() {
    let (catalog, unproved) = (two_services(), peers(["peer", "stranger"]));
    let networks = Arc::from(["10.244.1.0/24".parse().unwrap()]);
    let proofs = BTreeMap::from([(NodeName::new("peer"), networks)]);
    let proved = unproved.clone().with_verified(Arc::new(proofs));
    for (before, after, way) in [
        (&unproved, &proved, Way::Native),
        (&proved, &unproved, Way::Tunnel),
    ] {
        let earlier = plan(&catalog, before, &policy());
        let known = Earlier {
            catalog: &catalog,
            reachability: before,
            policy: &policy(),
            plan: &earlier,
        };
        let later = plan_since(&catalog, after, &policy(), known);
        let mut ports = earlier.ports().zip(later.ports());
        let shared = ports.by_ref().map(|(then, now)| Arc::ptr_eq(then, now));
        assert_eq!(shared.collect::<Vec<_>>(), [true, false]);
        assert_eq!(
            ways(&later),
            [
                ("10.244.2.2:8080".to_owned(), Way::Tunnel),
                ("10.244.1.2:8080".to_owned(), way),
            ]
        );
        assert_eq!(later, plan(&catalog, after, &policy()));
    }
}

/// `default/other` has its endpoint at another node than `default/web`, and comes first.
fn two_services() -> Catalog {
    let other = Service {
        name: ObjectName::new("default", "other"),
        cluster_ips: vec!["10.96.0.2".parse().unwrap()],
        ..web()
    };
    let Change::Slice(mut others) = slice("b", [on(Some("stranger"), "10.244.2.2")]) else {
        panic!("a slice is a slice");
    };
    others.service = "other".into();
    cluster([
        Change::Service(web()),
        Change::Service(other),
        slice("a", [on(Some("peer"), "10.244.1.2")]),
        Change::Slice(others),
    ])
}

fn peers<const N: usize>(names: [&str; N]) -> Reachability {
    Reachability::with_peers(names.map(NodeName::new))
}

fn on(node: Option<&str>, address: &str) -> Endpoint {
    Endpoint {
        node: node.map(NodeName::new),
        ..at(address)
    }
}

fn ways(plan: &Plan) -> Vec<(String, Way)> {
    plan.intercepted()
        .filter_map(|(_, portal)| match &portal.target {
            Target::Forward { endpoints, .. } => Some(endpoints),
            Target::Refuse(_) | Target::LeaveAlone(_) => None,
        })
        .flat_map(|endpoints| endpoints.iter().map(|e| (e.address.to_string(), e.way)))
        .collect()
}

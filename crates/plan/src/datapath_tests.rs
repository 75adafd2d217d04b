use std::time::Duration;

use edgemesh_catalog::NodeName;

use super::*;
use crate::{BypassingNetwork, HostFacts};

const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

fn native(address: &str) -> PortalEndpoint {
    PortalEndpoint {
        address: address.parse().unwrap(),
        node: None,
        way: Way::Native,
    }
}

fn tunnelled(address: &str) -> PortalEndpoint {
    PortalEndpoint {
        node: Some(NodeName::new("peer")),
        way: Way::Tunnel,
        ..native(address)
    }
}

fn hybrid() -> Policy {
    Policy::of(NodeName::new("here"))
}

/// The policy of a host of which only this is to be said about IPv4.
fn on(ipv4: FamilyFacts) -> Policy {
    Policy {
        host: HostFacts {
            ipv4,
            ipv6: FamilyFacts::default(),
        },
        ..hybrid()
    }
}

fn addresses(endpoints: &[PortalEndpoint], datapath: Datapath) -> Vec<String> {
    datapath
        .kernel_endpoints(endpoints)
        .map(|endpoint| endpoint.address.to_string())
        .collect()
}

#[test]
fn native_endpoints_are_the_kernels_alone() {
    let endpoints = [native("10.244.1.2:80"), native("10.244.1.3:80")];
    let decided = datapath(&endpoints, None, &hybrid());
    assert_eq!(decided, Datapath::Kernel);
    assert_eq!(
        addresses(&endpoints, decided),
        ["10.244.1.2:80", "10.244.1.3:80"]
    );
}

#[test]
fn endpoints_of_both_kinds_are_shared_between_kernel_and_agent() {
    let endpoints = [tunnelled("10.244.1.2:80"), native("10.244.1.3:80")];
    let decided = datapath(&endpoints, None, &hybrid());
    assert_eq!(decided, Datapath::KernelAndAgent);
    assert_eq!(addresses(&endpoints, decided), ["10.244.1.3:80"]);
}

#[test]
fn what_only_the_tunnel_reaches_stays_in_user_mode() {
    let endpoints = [tunnelled("10.244.1.2:80")];
    let decided = datapath(&endpoints, None, &hybrid());
    assert_eq!(decided, Datapath::User(UserMode::NoNativeEndpoint));
    assert!(addresses(&endpoints, decided).is_empty());
}

#[test]
fn operator_can_have_everything_in_user_mode() {
    let policy = Policy {
        datapath: DatapathMode::User,
        ..hybrid()
    };
    let decided = datapath(&[native("10.244.1.2:80")], None, &policy);
    assert_eq!(decided, Datapath::User(UserMode::Configured));
}

#[test]
fn affinity_is_the_kernels_only_where_the_kernel_has_all_endpoints() {
    let alone = [native("10.244.1.2:80")];
    assert_eq!(datapath(&alone, HOUR, &hybrid()), Datapath::Kernel);
    let both = [native("10.244.1.2:80"), tunnelled("10.244.1.3:80")];
    assert_eq!(
        datapath(&both, HOUR, &hybrid()),
        Datapath::User(UserMode::AffinityAcrossTunnel)
    );
}

#[test]
fn host_whose_rules_cant_keep_clients_keeps_them_in_user_mode() {
    let facts = FamilyFacts {
        no_affinity: Some("the kernel has no xt_recent".into()),
        ..FamilyFacts::default()
    };
    let endpoints = [native("10.244.1.2:80")];
    let why = UserMode::RulesCannotKeepClients;
    assert_eq!(
        datapath(&endpoints, HOUR, &on(facts.clone())),
        Datapath::User(why)
    );
    assert_eq!(
        datapath(&endpoints, None, &on(facts.clone())),
        Datapath::Kernel
    );
    assert_eq!(why.detail(&facts, []), Some("the kernel has no xt_recent"));
}

#[test]
fn obstacles_of_one_family_are_none_of_the_others() {
    for (facts, why) in [
        (
            FamilyFacts {
                not_forwarding: Some("ip_forward is 0".into()),
                ..FamilyFacts::default()
            },
            UserMode::NotForwarding,
        ),
        (
            FamilyFacts {
                no_kernel_path: Some("too old".into()),
                ..FamilyFacts::default()
            },
            UserMode::RulesCannot,
        ),
    ] {
        assert!(why.detail(&facts, []).is_some());
        let policy = on(facts);
        let v4 = datapath(&[native("10.244.1.2:80")], None, &policy);
        let v6 = datapath(&[native("[fd00::2]:80")], None, &policy);
        assert_eq!((v4, v6), (Datapath::User(why), Datapath::Kernel));
    }
}

#[test]
fn only_portals_with_an_endpoint_on_a_bridge_past_nat_stay_in_user_mode() {
    let facts = FamilyFacts {
        bypassing: [BypassingNetwork {
            network: "10.244.1.0/24".parse().unwrap(),
            why: "cni0: bridge-nf-call-iptables is 0".into(),
        }]
        .into(),
        ..FamilyFacts::default()
    };
    let policy = on(facts.clone());
    let on_bridge = [native("10.244.1.2:80"), native("10.244.2.2:80")];
    assert_eq!(
        datapath(&on_bridge, None, &policy),
        Datapath::User(UserMode::PastNat)
    );
    assert_eq!(
        UserMode::PastNat.detail(&facts, on_bridge.iter().map(|e| e.address)),
        Some("cni0: bridge-nf-call-iptables is 0")
    );
    let elsewhere = [native("10.244.2.2:80")];
    assert_eq!(datapath(&elsewhere, None, &policy), Datapath::Kernel);
    // The exit answers for it, not the bridge.
    let through_tunnel = [tunnelled("10.244.1.2:80"), native("10.244.2.2:80")];
    assert_eq!(
        datapath(&through_tunnel, None, &policy),
        Datapath::KernelAndAgent
    );
}

#[test]
fn a_decision_takes_no_room_in_a_portal() {
    assert_eq!(size_of::<Datapath>(), 1);
}

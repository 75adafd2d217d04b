//! Portals that the kernel serves by way of iptables, with real traffic: who is reached, how
//! often, and whom endpoints see.

mod on_node;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use edgemesh_lab::{
    ClusterService, KubeProxy, Place, Pod, RuleList, Table, connect_from, request,
    test_each_flavour,
};
use edgemesh_rules::{Change, Family, KernelEndpoint, Ruleset, Sharing};
use on_node::two_nodes::{
    ENDPOINT_PORT, HOUR, Stage, address, in_each_family, portal, seen, serve, who,
};
use on_node::{Answering, cluster_ip, labs};

#[test]
fn every_endpoint_gets_the_same_share_and_the_agent_one_for_each_of_its_own() -> Result<()> {
    const CONNECTIONS: u32 = 400;
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let _agent = Answering::on_intercept_address(&stage.node, family)?;
            let others = Sharing::WithAgent(NonZeroU32::MIN.saturating_add(1));
            let rules = stage.leading_to(family, &[&stage.here, &stage.far], others)?;
            backend.apply(&rules).await?;
            let mut answers: BTreeMap<String, u32> = BTreeMap::new();
            for _ in 0..CONNECTIONS {
                *answers
                    .entry(who(&stage.client, portal(family, 1))?)
                    .or_default() += 1;
            }
            // Six standard deviations: it fails by chance once in 500 million times.
            for (server, expected) in [("here", 100), ("far", 100), ("the agent", 200)] {
                let got = answers.get(server).copied().unwrap_or(0);
                assert!(got.abs_diff(expected) < 60, "{server}: {answers:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_client_stays_with_its_endpoint_even_when_another_one_comes() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let both = stage.leading_to(family, &[&stage.here, &stage.far], HOUR)?;
            backend.apply(&both).await?;
            let first = who(&stage.client, portal(family, 1))?;
            for _ in 0..20 {
                assert_eq!(who(&stage.client, portal(family, 1))?, first);
            }
            let mut more = Ruleset::clone(&both);
            let mut endpoints = both
                .portals()
                .values()
                .next()
                .context("no portal")?
                .kernel
                .as_ref()
                .context("no kernel path")?
                .endpoints()
                .to_vec();
            endpoints.push(KernelEndpoint {
                address: (stage.nodes_address(family)?, ENDPOINT_PORT).into(),
                is_pod_here: false,
            });
            serve(&mut more, 1, endpoints, HOUR)?;
            let applied = backend.apply(&Arc::new(more)).await?;
            assert_eq!(applied.change, Change::Incremental);
            for _ in 0..20 {
                assert_eq!(who(&stage.client, portal(family, 1))?, first);
            }
            Ok(())
        })
    })
}

#[test]
fn endpoints_see_who_can_be_answered() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let at = portal(family, 1);
            let nodes_own = stage.nodes_address(family)?;
            let clients = address(&stage.client.addresses(), family)?;
            for pod in [&stage.here, &stage.far] {
                let rules = stage.leading_to(family, &[pod], Sharing::Alone)?;
                backend.apply(&rules).await?;
                assert_eq!(
                    seen(&stage.client, at)?,
                    [clients; 2],
                    "a pod, at {}",
                    pod.name()
                );
                for masqueraded in seen(&stage.node, at)? {
                    assert_eq!(masqueraded, nodes_own, "the host, at {}", pod.name());
                }
            }

            let itself = stage.leading_to(family, &[&stage.here], Sharing::Alone)?;
            backend.apply(&itself).await?;
            let pods_own = address(&stage.here.addresses(), family)?;
            for masqueraded in seen(&stage.here, at)? {
                assert_ne!(masqueraded, pods_own, "a pod that reaches itself");
            }
            // Among several it reaches itself, too.
            let several = stage.leading_to(family, &[&stage.here, &stage.far], Sharing::Alone)?;
            backend.apply(&several).await?;
            for _ in 0..20 {
                let answer = stage.here.ask(at, "?")?;
                let expected = match answer.server.as_str() {
                    "here" => nodes_own,
                    _ => pods_own,
                };
                assert_eq!(answer.client.ip(), expected, "{answer:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn who_comes_from_elsewhere_is_masqueraded() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let at = portal(family, 1);
            let nodes_own = stage.nodes_address(family)?;
            let way = [&at.ip().to_string(), "via", &nodes_own.to_string()];
            let route = |what| ["route", what].into_iter().chain(way);
            stage.other.program("ip").args(route("add")).run()?;
            for pod in [&stage.here, &stage.far] {
                let rules = stage.leading_to(family, &[pod], Sharing::Alone)?;
                backend.apply(&rules).await?;
                assert_eq!(
                    stage.other.ask(at, "?")?.client.ip(),
                    nodes_own,
                    "{}",
                    pod.name()
                );
            }
            stage.other.program("ip").args(route("del")).run()?;
            Ok(())
        })
    })
}

#[test]
fn an_endpoint_on_the_nodes_own_network_is_reached_as_it_is() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let nodes_own = stage.nodes_address(family)?;
            let mut rules = stage.nothing(family)?;
            let endpoint = KernelEndpoint {
                address: (nodes_own, ENDPOINT_PORT).into(),
                is_pod_here: false,
            };
            serve(&mut rules, 1, vec![endpoint], Sharing::Alone)?;
            backend.apply(&Arc::new(rules)).await?;
            let at = portal(family, 1);
            let clients = address(&stage.client.addresses(), family)?;
            assert_eq!(stage.client.ask(at, "?")?.client.ip(), clients);
            assert_eq!(stage.node.ask(at, "?")?.client.ip(), nodes_own);
            Ok(())
        })
    })
}

#[test]
fn kube_proxys_rules_neither_see_nor_masquerade_what_is_ours() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        let service = ClusterService::new("default/s-1")
            .cluster_ip(&cluster_ip(Family::V4, 1).to_string())
            .cluster_ip(&cluster_ip(Family::V6, 1).to_string())
            .tcp("http", 80, ENDPOINT_PORT)
            .udp("http-udp", 80, ENDPOINT_PORT)
            .endpoint(&stage.far);
        let _kube_proxy = KubeProxy::start(&stage.node, flavour, &[service])?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = stage.leading_to(family, &[&stage.here, &stage.far], Sharing::Alone)?;
            backend.apply(&rules).await?;
            for _ in 0..10 {
                seen(&stage.client, portal(family, 1))?;
                seen(&stage.node, portal(family, 1))?;
                seen(&stage.here, portal(family, 1))?;
            }
            let nat = RuleList::read(&stage.node, flavour, labs(family), Table::Nat)?;
            for chain in ["KUBE-MARK-MASQ", "KUBE-SERVICES"] {
                for rule in nat
                    .rules(chain)
                    .iter()
                    .filter(|rule| !rule.text.contains("NODEPORTS"))
                {
                    assert_eq!(rule.packets, 0, "{chain}: {}", rule.text);
                }
            }
            let masqueraded = nat
                .rules("KUBE-POSTROUTING")
                .iter()
                .filter(|rule| rule.jump() == Some("MASQUERADE"));
            assert_eq!(masqueraded.map(|rule| rule.packets).sum::<u64>(), 0);
            Ok(())
        })
    })
}

#[test]
fn what_is_for_no_portal_does_not_go_through_the_list() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = stage.leading_to(family, &[&stage.here], Sharing::Alone)?;
            backend.apply(&rules).await?;
            let direct = SocketAddr::new(address(&stage.far.addresses(), family)?, ENDPOINT_PORT);
            who(&stage.client, direct)?;
            who(&stage.node, direct)?;
            let nat = RuleList::read(&stage.node, flavour, labs(family), Table::Nat)?;
            for chain in ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"] {
                let passed = nat.commented(chain, "edgemesh: for no portal");
                assert!(passed.map(|rule| rule.packets).sum::<u64>() > 0, "{chain}");
                let marked = nat.commented(chain, "edgemesh: through a portal");
                assert_eq!(marked.map(|rule| rule.packets).sum::<u64>(), 0, "{chain}");
            }
            Ok(())
        })
    })
}

#[test]
fn no_connection_fails_while_endpoints_and_services_come_and_go() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let sets: [&[&Pod]; 4] = [
                &[&stage.here],
                &[&stage.here, &stage.far],
                &[&stage.far],
                &[&stage.far, &stage.here],
            ];
            backend
                .apply(&stage.leading_to(family, sets[0], Sharing::Alone)?)
                .await?;
            let asking = Asking::begin(&stage.client, portal(family, 1));
            for round in 0..40 {
                let pods = sets[round % sets.len()];
                let rules = stage.leading_to(family, pods, Sharing::Alone)?;
                let mut rules = Ruleset::clone(&rules);
                for other in 2..2 + u16::try_from(round % 5)? {
                    serve(&mut rules, other, Vec::new(), Sharing::Alone)?;
                }
                let applied = backend.apply(&Arc::new(rules)).await?;
                assert_ne!(applied.change, Change::ReadBack);
            }
            assert!(asking.end()? > 0);
            Ok(())
        })
    })
}

/// Somebody who connects all the time.
struct Asking {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Asking {
    fn begin(place: &impl Place, to: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (until, place) = (Arc::clone(&over), place.namespace().clone());
        let thread = thread::spawn(move || {
            let mut connections = 0;
            while !until.load(Ordering::Relaxed) {
                let stream = connect_from(&place, to)?;
                drop(request(stream, "?")?);
                connections += 1;
            }
            Ok(connections)
        });
        Self { over, thread }
    }

    /// How many connections there were, if none failed.
    fn end(self) -> Result<u32> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

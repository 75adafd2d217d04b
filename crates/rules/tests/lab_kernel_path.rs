//! Portals that the kernel serves by way of iptables, with real traffic: who is reached, how
//! often, and whom endpoints see.

mod on_node;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{
    ClusterService, Flavour, KubeProxy, Lab, Node, Place, Pod, PodNetwork, RuleList, Serve, Server,
    Table, connect_from, request, test, test_each_flavour,
};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Backend, Change, Family, Gate, KernelEndpoint, KernelPath, Mark, OwnChain, PortalRule, Pulse,
    Repair, RuleComment, Ruleset, Sharing, cleanup, inspect, render,
};
use on_node::{Answering, backend, cluster_ip, intercept, labs, nat, on_node, ours};

const AGENTS_PORT: u16 = 20007;
const ENDPOINT_PORT: u16 = 8080;
const HOUR: Sharing = Sharing::Sticky(Duration::from_secs(3600));

/// Two nodes whose pods reach each other; ours is the first.
struct Stage {
    node: Node,
    other: Node,
    client: Pod,
    here: Pod,
    far: Pod,
    _servers: Vec<Server>,
}

impl Stage {
    fn set(lab: &Lab) -> Result<Self> {
        // On one bridge, answers among the node's pods would pass by connection tracking.
        let node = lab
            .node("edge-1")
            .with_pods_wired(PodNetwork::Calico)
            .create()?;
        let other = lab
            .node("edge-2")
            .with_pods_wired(PodNetwork::Calico)
            .create()?;
        let client = node.pod("client").create()?;
        let here = node.pod("here").create()?;
        let far = other.pod("far").create()?;
        let mut servers = Vec::new();
        for pod in [&here, &far] {
            servers.push(pod.serve(ENDPOINT_PORT, Serve::Identity)?);
            servers.push(pod.serve(ENDPOINT_PORT, Serve::UdpIdentity)?);
        }
        servers.push(node.serve(ENDPOINT_PORT, Serve::Identity)?);
        Ok(Self {
            node,
            other,
            client,
            here,
            far,
            _servers: servers,
        })
    }

    fn pods(&self, family: Family) -> Result<ipnet::IpNet> {
        Ok(match family {
            Family::V4 => self.node.pod_range_v4(),
            Family::V6 => self.node.pod_range_v6(),
        }
        .parse()?)
    }

    fn nothing(&self, family: Family) -> Result<Ruleset> {
        let rules = Ruleset::new(intercept(family), 20008, Mark::AGENT);
        Ok(rules.with_pods([self.pods(family)?]))
    }

    /// Rules for one portal of each protocol, number 1, that lead to these pods.
    fn leading_to(&self, family: Family, pods: &[&Pod], sharing: Sharing) -> Result<Arc<Ruleset>> {
        let mut endpoints = Vec::new();
        for pod in pods {
            endpoints.push(KernelEndpoint {
                address: (address(&pod.addresses(), family)?, ENDPOINT_PORT).into(),
                is_pod_here: pod.node_name() == self.node.name(),
            });
        }
        let mut rules = self.nothing(family)?;
        serve(&mut rules, 1, endpoints, sharing)?;
        Ok(Arc::new(rules))
    }

    fn nodes_address(&self, family: Family) -> Result<IpAddr> {
        match family {
            Family::V4 => Ok(self.node.ipv4().into()),
            Family::V6 => Ok(self.node.ipv6().context("no IPv6")?.into()),
        }
    }
}

fn serve(
    rules: &mut Ruleset,
    number: u16,
    endpoints: Vec<KernelEndpoint>,
    sharing: Sharing,
) -> Result<()> {
    let kernel = KernelPath::new(endpoints, sharing).map(Box::new);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rule = PortalRule {
            comment: RuleComment::new(&format!("default/s-{number}:http")),
            to_port: AGENTS_PORT,
            kernel: kernel.clone(),
        };
        let portal = portal(rules.family(), number);
        let frontend = Frontend {
            ip: portal.ip(),
            protocol,
            port: portal.port(),
        };
        rules.insert(frontend, rule)?;
    }
    Ok(())
}

fn portal(family: Family, number: u16) -> SocketAddr {
    (cluster_ip(family, number), 80).into()
}

fn address(of: &[IpAddr], family: Family) -> Result<IpAddr> {
    let same = |ip: &&IpAddr| Family::of(**ip) == family;
    of.iter().find(same).copied().context("no such address")
}

/// Who answers at `to`, pods and the agent alike.
fn who(place: &impl Place, to: SocketAddr) -> Result<String> {
    let mut stream = place.connect(to)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        bail!("no answer from {to}");
    }
    Ok(answer.split(" saw ").next().unwrap_or_default().to_owned())
}

/// Whose address the server sees that answers at `to`, over TCP and over UDP.
fn seen(place: &impl Place, to: SocketAddr) -> Result<[IpAddr; 2]> {
    Ok([
        place.ask(to, "?")?.client.ip(),
        place.ask_udp(to, "?")?.client.ip(),
    ])
}

/// Runs a test for each family, with a backend that is there already.
fn in_each_family(
    stage: &Stage,
    flavour: Flavour,
    body: impl AsyncFn(Family, &mut Backend) -> Result<()> + Sync,
) -> Result<()> {
    on_node(&stage.node, async || -> Result<()> {
        for family in Family::BOTH {
            let mut backend = backend(family, flavour).await?;
            body(family, &mut backend)
                .await
                .with_context(|| format!("{family} {flavour}"))?;
            backend.remove().await?;
            let left = nat(&stage.node, flavour, family)?;
            assert!(!left.contains("EDGEMESH"), "{left}");
        }
        Ok(())
    })?
}

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
            let mut pulse = Pulse::new(family)?;
            for _ in 0..CONNECTIONS {
                pulse.beat()?;
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

/// Rules with a portal of each kind.
fn of_each_kind(stage: &Stage, family: Family) -> Result<Arc<Ruleset>> {
    let mut endpoints = Vec::new();
    for pod in [&stage.here, &stage.far] {
        endpoints.push(KernelEndpoint {
            address: (address(&pod.addresses(), family)?, ENDPOINT_PORT).into(),
            is_pod_here: pod.node_name() == stage.node.name(),
        });
    }
    let mut rules = stage.nothing(family)?;
    serve(&mut rules, 1, endpoints[..1].to_vec(), Sharing::Alone)?;
    serve(&mut rules, 2, endpoints.clone(), Sharing::Alone)?;
    serve(&mut rules, 3, endpoints.clone(), HOUR)?;
    serve(
        &mut rules,
        4,
        endpoints,
        Sharing::WithAgent(NonZeroU32::MIN),
    )?;
    serve(&mut rules, 5, Vec::new(), Sharing::Alone)?;
    Ok(Arc::new(rules))
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_iptables_prints_is_what_was_rendered() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let printed: String = nat(&stage.node, flavour, family)?
                .lines()
                .filter(|line| line.starts_with("-A EDGEMESH-"))
                .map(|line| line.replace("\\'", "'") + "\n")
                .collect();
            let gated = Ruleset::clone(&rules).gated(Gate::Refuse);
            assert_eq!(lines(&printed), lines(&render(&gated)));
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            Ok(())
        })
    })
}

#[test]
fn the_next_agent_takes_over_what_a_killed_one_left() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, next| {
            let rules = of_each_kind(&stage, family)?;
            backend(family, flavour).await?.apply(&rules).await?;
            let applied = next.apply(&rules).await?;
            assert_eq!((applied.change, applied.lines), (Change::None, 0));
            let empty = Arc::new(stage.nothing(family)?);
            next.apply(&empty).await?;
            assert!(!nat(&stage.node, flavour, family)?.contains("EDGEMESH-SVC-"));
            Ok(())
        })
    })
}

#[test]
fn what_a_killed_agent_left_is_cleaned_up() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        on_node(&stage.node, async || -> Result<()> {
            for family in Family::BOTH {
                let rules = of_each_kind(&stage, family)?;
                backend(family, flavour).await?.apply(&rules).await?;
            }
            let done = cleanup(&[]).await;
            assert_eq!(done.problems, [] as [&str; 0]);
            for family in Family::BOTH {
                let left = nat(&stage.node, flavour, family)?;
                assert!(!left.contains("EDGEMESH"), "{left}");
            }
            Ok(())
        })?
    })
}

#[test]
fn whatever_others_undo_is_put_back() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let right = lines(&nat(&stage.node, flavour, family)?);
            let undo = |words: &str| {
                let words: Vec<&str> = words.split(' ').collect();
                flavour.command(&stage.node, labs(family), words)
            };
            let masquerade = "EDGEMESH-POSTROUTING";
            for words in [
                "-t nat -D POSTROUTING 1".to_owned(),
                format!("-t nat -D {masquerade} 5"),
                format!("-t nat -F {masquerade}"),
                "-t nat -F".to_owned(),
            ] {
                undo(&words)?;
                let repairs = backend.verify(&rules).await?.repairs;
                assert!(!repairs.is_empty(), "{words}");
                let now = lines(&nat(&stage.node, flavour, family)?);
                assert_eq!(now, right, "after {words}");
            }
            let services = nat(&stage.node, flavour, family)?;
            let service = services
                .lines()
                .find_map(|line| line.strip_prefix(":EDGEMESH-SVC-")?.split(' ').next())
                .context("no chain")?
                .to_owned();
            undo(&format!("-t nat -D EDGEMESH-SVC-{service} 1"))?;
            let repairs = backend.verify(&rules).await?.repairs;
            assert!(
                matches!(repairs[..], [Repair::ServiceChains { count: 1, .. }]),
                "{repairs:?}"
            );
            assert_eq!(lines(&nat(&stage.node, flavour, family)?), right);

            // Nobody has the program ipset everywhere; who has it can empty the set.
            let set = ["EDGEMESH-PORTALS", "EDGEMESH-PORTALS-6"][usize::from(family == Family::V6)];
            let flush = stage.node.program("ipset").args(["flush", set]).output();
            if flush.is_ok_and(|done| done.status.success()) {
                assert_eq!(backend.verify(&rules).await?.repairs, [Repair::PortalSet]);
                assert_eq!(backend.verify(&rules).await?.repairs, []);
            }
            who(&stage.client, portal(family, 1))?;
            Ok(())
        })
    })
}

#[test]
fn who_serves_a_portal_and_how_often_is_read_from_the_kernel() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            for _ in 0..10 {
                who(&stage.client, portal(family, 1))?;
                who(&stage.client, portal(family, 2))?;
            }
            let inspected = inspect(family).await;
            let ours = inspected
                .into_iter()
                .find(|inspected| inspected.flavour == ours(flavour))
                .context("not inspected")?;
            let view = ours.nat.map_err(|why| anyhow!(why))?;
            let sent = |number| {
                let at = portal(family, number);
                let frontend = Frontend {
                    ip: at.ip(),
                    protocol: Protocol::Tcp,
                    port: at.port(),
                };
                let found = view.own_rule(OwnChain::Container, &frontend);
                found.map(|found| view.sent_to(found)).unwrap_or_default()
            };
            let connections = |number| sent(number).iter().map(|s| s.connections).sum::<u64>();
            assert_eq!((sent(1).len(), connections(1)), (1, 10));
            assert_eq!((sent(2).len(), connections(2)), (2, 10));
            let shared: Vec<bool> = sent(4).iter().map(|sent| sent.is_agent).collect();
            assert_eq!(shared, [false, false, true]);
            assert!(sent(5)[0].is_agent);
            assert!(view.masquerade().jump.is_some());
            Ok(())
        })
    })
}

#[test]
fn what_the_kernel_serves_costs_no_portal_of_the_agents_anything() -> Result<()> {
    test(|lab| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, Flavour::Nft, async |family, backend| {
            let mut rules = stage.nothing(family)?;
            serve(&mut rules, 1, Vec::new(), Sharing::Alone)?;
            let rules = Arc::new(rules);
            backend.apply(&rules).await?;
            let text = nat(&stage.node, Flavour::Nft, family)?;
            assert!(
                !text.contains("MASQUERADE") && !text.contains("MARK"),
                "{text}"
            );
            assert_eq!(
                (backend.no_kernel_path(), backend.no_affinity()),
                (None, None)
            );
            Ok(())
        })
    })
}

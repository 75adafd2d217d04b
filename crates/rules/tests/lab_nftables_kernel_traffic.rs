//! Connections that the kernel sends to endpoints by nftables: who answers, and whom he sees.

mod kernel_paths;
mod on_node;
mod shown;

#[path = "kernel_paths/stage.rs"]
mod stage;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_catalog::Protocol::{self, Tcp, Udp};
use edgemesh_lab::{ClusterService, KubeProxy, Place, await_until, test};
use edgemesh_rules::{Family, Sharing, own_tables};
use kernel_paths::with_agent;
use on_node::{KUBE_PROXY_MODES, nftables, on_node, remove_kube_proxy};
use shown::{has_table, table};
use stage::Stage;

const AGENT: &str = "the agent";
const BOTH: [Protocol; 2] = [Tcp, Udp];

#[test]
fn every_endpoint_has_the_same_share_and_the_agent_that_of_those_it_serves() -> Result<()> {
    test(|lab| {
        for family in Family::BOTH {
            let stage = Stage::set(lab, family)?;
            let rules = stage.rules(&[&stage.here, &stage.there], with_agent(2)?)?;
            on_node(&stage.node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                // There is no kube-proxy here: what nobody took would be refused.
                assert!(has_table(&stage.node, family, "edgemesh-refuse")?);
                for protocol in BOTH {
                    for place in [stage.client.namespace(), stage.node.namespace()] {
                        let answers = stage.answers(place, protocol, 200)?;
                        let shares = [AGENT, stage.here.name(), stage.there.name()]
                            .map(|name| answers.get(name).copied().unwrap_or_default());
                        // Some six standard deviations.
                        let near = |count: usize, expected: usize| count.abs_diff(expected) < 42;
                        let [agent, here, there] = shares;
                        assert!(
                            near(agent, 100) && near(here, 50) && near(there, 50),
                            "{family} {protocol}: {answers:?}"
                        );
                    }
                }
                backend.remove().await?;
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn all_of_a_portal_that_the_kernel_serves_alone_goes_to_its_endpoints() -> Result<()> {
    test(|lab| {
        for family in Family::BOTH {
            let stage = Stage::set(lab, family)?;
            let pods = [&stage.here, &stage.also_here, &stage.there];
            on_node(&stage.node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                for (count, protocols) in [
                    (1, &BOTH[..]),
                    (2, &BOTH),
                    (3, &BOTH),
                    (1, &BOTH),
                    (2, &BOTH),
                ] {
                    let rules = stage.rules(&pods[..count], Sharing::Alone)?;
                    backend.apply(&rules).await?;
                    for &protocol in protocols {
                        let answers = stage.answers(stage.client.namespace(), protocol, 60)?;
                        let expected: Vec<_> = pods[..count].iter().map(|pod| pod.name()).collect();
                        let mut answered: Vec<_> = answers.keys().map(String::as_str).collect();
                        answered.sort_by_key(|name| expected.iter().position(|e| e == name));
                        assert_eq!(answered, expected, "{family} {protocol}");
                    }
                }
                let before = connections(family)?;
                stage.answers(stage.client.namespace(), Tcp, 5)?;
                let after = connections(family)?;
                assert_eq!(
                    (after.shared - before.shared, after.whole),
                    (5, before.whole)
                );
                Ok(())
            })??;
        }
        Ok(())
    })
}

/// What the counters of the TCP portal say.
#[derive(Clone, Copy, Debug)]
struct Counted {
    shared: u64,
    whole: u64,
}

fn connections(family: Family) -> Result<Counted> {
    let tables = own_tables(family)?;
    let portals = tables.iter().flat_map(|table| &table.portals);
    let (_, element) = portals
        .into_iter()
        .find(|(frontend, _)| frontend.protocol == Tcp)
        .context("no portal")?;
    let shared = element.shared.as_ref().context("not shared")?;
    Ok(Counted {
        shared: shared.packets,
        whole: element.packets,
    })
}

#[test]
fn pods_are_seen_as_they_are_but_by_themselves_and_the_host_is_masqueraded() -> Result<()> {
    test(|lab| {
        for family in Family::BOTH {
            let stage = Stage::set(lab, family)?;
            let own = host_addresses(&stage)?;
            on_node(&stage.node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                for rules in [
                    stage.rules(&[&stage.here], Sharing::Alone)?,
                    stage.rules_with_pods(&[&stage.here], Sharing::Alone)?,
                ] {
                    backend.apply(&rules).await?;
                    let client = stage.address(&stage.client);
                    assert_eq!(stage.seen_client(&stage.client)?, client);
                    let itself = stage.seen_client(&stage.here)?;
                    assert!(own.contains(&itself), "{itself} is none of {own:?}");
                    let host = stage.seen_client(&stage.node)?;
                    assert!(own.contains(&host), "{host} is none of {own:?}");
                }
                // Another pod of a portal in which it has a part is seen as it is.
                let pods = [&stage.here, &stage.also_here];
                backend
                    .apply(&stage.rules_with_pods(&pods, Sharing::Alone)?)
                    .await?;
                for _ in 0..20 {
                    let answer = stage.here.ask(stage.portal(), "hello")?;
                    let client = answer.client.ip();
                    if answer.server == stage.here.name() {
                        assert!(own.contains(&client), "{client}");
                    } else {
                        assert_eq!(client, stage.address(&stage.here));
                    }
                }
                Ok(())
            })??;
        }
        Ok(())
    })
}

/// The addresses of the node's interfaces.
fn host_addresses(stage: &Stage) -> Result<Vec<IpAddr>> {
    let mut own = stage.node.pod_gateways();
    own.push(stage.node.ipv4().into());
    own.extend(stage.node.ipv6().map(IpAddr::V6));
    Ok(own)
}

#[test]
fn from_outside_the_pods_networks_is_masqueraded_where_these_are_known() -> Result<()> {
    test(|lab| {
        for family in Family::BOTH {
            let stage = Stage::set(lab, family)?;
            let own = host_addresses(&stage)?;
            let router = match (family, stage.node.ipv6()) {
                (Family::V6, Some(v6)) => IpAddr::V6(v6),
                (Family::V4, _) | (Family::V6, None) => stage.node.ipv4().into(),
            };
            // A pod elsewhere comes by this node.
            let (portal, router) = (stage.portal().ip().to_string(), router.to_string());
            stage
                .other_node
                .program("ip")
                .args(["route", "add", &portal, "via", &router])
                .run()?;
            on_node(&stage.node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                let pods = [&stage.here];
                backend.apply(&stage.rules(&pods, Sharing::Alone)?).await?;
                assert_eq!(stage.seen_client(&stage.far)?, stage.address(&stage.far));
                backend
                    .apply(&stage.rules_with_pods(&pods, Sharing::Alone)?)
                    .await?;
                let seen = stage.seen_client(&stage.far)?;
                assert!(own.contains(&seen), "{seen} is none of {own:?}");
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn a_client_keeps_its_endpoint_until_that_goes_or_the_client_is_silent() -> Result<()> {
    test(|lab| {
        for family in Family::BOTH {
            let stage = Stage::set(lab, family)?;
            let sticky = Sharing::Sticky(Duration::from_secs(3));
            let [here, also_here, there] = [&stage.here, &stage.also_here, &stage.there];
            let pod = |name: &str| {
                [here, also_here, there]
                    .into_iter()
                    .find(|p| p.name() == name)
            };
            on_node(&stage.node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                backend
                    .apply(&stage.rules(&[here, also_here], sticky)?)
                    .await?;
                for protocol in BOTH {
                    let keep = || stage.only_answer(stage.client.namespace(), protocol);
                    backend
                        .apply(&stage.rules(&[here, also_here], sticky)?)
                        .await?;
                    let first = keep()?;
                    // Others come: whoever has an endpoint keeps it.
                    let three = stage.rules(&[here, also_here, there], sticky)?;
                    backend.apply(&three).await?;
                    assert_eq!(keep()?, first, "{family} {protocol}");
                    // It goes: the client gets another one, and keeps that when it is back.
                    let gone = pod(&first).context("a stranger")?;
                    let left: Vec<_> = [here, also_here, there]
                        .into_iter()
                        .filter(|pod| pod.name() != gone.name())
                        .collect();
                    backend.apply(&stage.rules(&left, sticky)?).await?;
                    let second = keep()?;
                    assert_ne!(second, first);
                    backend.apply(&three).await?;
                    assert_eq!(keep()?, second);
                }
                let client = stage.address(&stage.client).to_string();
                let is_known = || -> Result<bool> {
                    let text = table(&stage.node, family, "edgemesh")?;
                    Ok(text.contains(&format!("elements = {{ {client}")))
                };
                assert!(is_known()?);
                await_until(
                    Duration::from_secs(20),
                    "a silent client is forgotten",
                    || is_known().is_ok_and(|known| !known),
                )?;
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn beside_kube_proxy_in_every_mode_the_kernel_path_comes_first_until_the_gate_closes() -> Result<()>
{
    test(|lab| {
        let stage = Stage::set(lab, Family::V4)?;
        let portal = stage.portal();
        let service = ClusterService::new("default/web")
            .cluster_ip(&portal.ip().to_string())
            .tcp("http", portal.port(), stage::PORT)
            .udp("dns", portal.port(), stage::PORT)
            .endpoint(&stage.there);
        let pods = [&stage.here];
        let rules = stage.rules_with_pods(&pods, Sharing::Alone)?;
        let both = stage.rules_with_pods(&[&stage.here, &stage.also_here], Sharing::Alone)?;
        let client = stage.client.namespace();
        for mode in KUBE_PROXY_MODES {
            on_node(&stage.node, async || -> Result<()> {
                let kube_proxy =
                    KubeProxy::start(&stage.node, mode, std::slice::from_ref(&service))?;
                let mut backend = nftables(Family::V4).await?;
                backend.apply(&rules).await?;
                for protocol in BOTH {
                    assert_eq!(stage.only_answer(client, protocol)?, "here", "{mode:?}");
                    let host = stage.node.namespace();
                    assert_eq!(stage.only_answer(host, protocol)?, "here", "{mode:?}");
                }
                let seen = stage.seen_client(&stage.client)?;
                assert_eq!(seen, stage.address(&stage.client), "{mode:?}");
                assert_ne!(stage.seen_client(&stage.here)?, stage.address(&stage.here));
                kube_proxy.restart()?;
                assert_eq!(stage.only_answer(client, Tcp)?, "here", "{mode:?}");
                backend.apply(&both).await?;
                let answers = stage.answers(client, Tcp, 40)?;
                assert_eq!(answers.keys().collect::<Vec<_>>(), ["also-here", "here"]);
                stage.node.program("nft").args(["flush", "ruleset"]).run()?;
                assert_eq!(stage.answers(client, Udp, 40)?.len(), 2, "{mode:?}");
                kube_proxy.restart()?;
                // As if the agent hung.
                let mut backend = backend.hold_still();
                await_until(Duration::from_secs(10), "kube-proxy serves", || {
                    stage
                        .only_answer(client, Tcp)
                        .is_ok_and(|who| who == "there")
                })?;
                assert_eq!(stage.only_answer(client, Udp)?, "there", "{mode:?}");
                backend.remove().await?;
                remove_kube_proxy(&stage.node, mode)
            })??;
        }
        Ok(())
    })
}

#[test]
fn connections_that_are_there_outlive_every_change_of_their_portal() -> Result<()> {
    test(|lab| {
        let stage = Stage::set(lab, Family::V4)?;
        on_node(&stage.node, async || -> Result<()> {
            let mut backend = nftables(Family::V4).await?;
            backend
                .apply(&stage.rules(&[&stage.here], Sharing::Alone)?)
                .await?;
            let flow = stage::flow(&stage.client, stage.portal())?;
            let mut held = Held::open(&stage)?;
            let who = |flow: &std::net::UdpSocket| -> Result<String> {
                flow.send(b"?")?;
                let mut buffer = [0; 256];
                let length = flow.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
            };
            assert!(who(&flow)?.starts_with("here saw"));
            for (pods, sharing) in [
                (&[&stage.here, &stage.there][..], Sharing::Alone),
                (&[&stage.there], Sharing::Alone),
                (&[], Sharing::Alone),
                (&[&stage.there], with_agent(1)?),
                (
                    &[&stage.also_here, &stage.there],
                    Sharing::Sticky(Duration::from_secs(9)),
                ),
            ] {
                backend.apply(&stage.rules(pods, sharing)?).await?;
                held.exchange()?;
                assert!(who(&flow)?.starts_with("here saw"));
            }
            Ok(())
        })?
    })
}

#[test]
fn without_kube_proxy_connections_go_on_when_the_agent_is_killed_and_while_it_ends() -> Result<()> {
    test(|lab| {
        let stage = Stage::set(lab, Family::V4)?;
        on_node(&stage.node, async || -> Result<()> {
            let rules = stage.rules(&[&stage.here], Sharing::Alone)?;
            let mut killed = nftables(Family::V4).await?;
            killed.apply(&rules).await?;
            let mut held = Held::open(&stage)?;
            drop(killed);
            assert!(!has_table(&stage.node, Family::V4, "edgemesh")?);
            held.exchange()?;
            let mut next = nftables(Family::V4).await?;
            next.apply(&rules).await?;
            held.exchange()?;
            next.remove().await?;
            held.exchange()?;
            drop(next);
            assert_eq!(
                stage.node.program("nft").args(["list", "tables"]).run()?,
                ""
            );
            Ok(())
        })?
    })
}

/// A TCP connection with somebody who sends back what he gets.
struct Held(std::net::TcpStream);

impl Held {
    fn open(stage: &Stage) -> Result<Self> {
        use std::io::Read;
        let mut stream = stage.client.connect(stage.portal())?;
        let mut greeting = [0; 1];
        while greeting != *b"\n" {
            stream.read_exact(&mut greeting)?;
        }
        Ok(Self(stream))
    }

    fn exchange(&mut self) -> Result<()> {
        use std::io::{Read, Write};
        self.0.write_all(b"still there?")?;
        let mut echo = [0; 12];
        self.0.read_exact(&mut echo)?;
        assert_eq!(&echo, b"still there?");
        Ok(())
    }
}

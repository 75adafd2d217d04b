//! What the nftables backend leaves to refuse, where there is no kube-proxy, while nobody
//! serves.

mod on_node;
mod shown;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{KubeProxy, Namespace, Node, Place, Serve, connect_from, request, test};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Backend, BackendSetting, Family, Mark, PortalRule, Repair, RuleComment, Ruleset, cleanup,
    refused_portals, render_refusing,
};
use on_node::{
    Answering, KUBE_PROXY_MODES, connect_as_agent, intercept, nftables, on_node, remove_kube_proxy,
    rules_for,
};
use shown::{has_table, table};

const REFUSING: &str = "edgemesh-refuse";
/// A time-out would be one of several seconds.
const AT_ONCE: Duration = Duration::from_secs(1);

fn refused(family: Family) -> Repair {
    Repair::TableMissing(format!("{} {REFUSING}", family.nft_name()))
}

/// Puts default routes on the node that lead where nobody answers: to a pod that forwards
/// nothing.
fn lead_astray(node: &Node) -> Result<()> {
    let nowhere = node.pod("nowhere").create()?;
    let text = "table inet nowhere { chain nowhere { type filter hook prerouting priority raw; policy \
                drop; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }";
    nowhere.program("nft").args(["-f", "-"]).input(text).run()?;
    let v6 = nowhere.ipv6().context("no IPv6")?.to_string();
    for (family, via) in [("-4", nowhere.ipv4().to_string()), ("-6", v6)] {
        let words = [family, "route", "replace", "default", "via", &via];
        node.program("ip").args(words).run()?;
    }
    Ok(())
}

fn check_refused(place: &Namespace, to: SocketAddr) -> Result<()> {
    let began = std::time::Instant::now();
    let tcp = connect_from(place, to).map(drop).map_err(|e| e.kind());
    ensure!(tcp == Err(ErrorKind::ConnectionRefused), "TCP: {tcp:?}");
    let udp = datagram(place, to).map_err(|e| e.kind());
    // What a filter rejects on its way out, the host's own send is told of so.
    let refused = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied].map(Err);
    ensure!(refused.contains(&udp), "UDP: {udp:?}");
    ensure!(began.elapsed() < AT_ONCE, "refused late");
    Ok(())
}

fn datagram(place: &Namespace, to: SocketAddr) -> io::Result<usize> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    place
        .run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(AT_ONCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            socket.recv(&mut [0; 16])
        })
        .map_err(io::Error::other)?
}

#[test]
fn what_nft_lists_is_what_was_rendered() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let other = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            let rules = rules_for(family, 5)?;
            let own = on_node(&node, async || -> Result<String> {
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                let own = table(&node, family, REFUSING)?;
                backend.remove().await?;
                Ok(own)
            })??;
            load(&other, &render_refusing(&rules))?;
            assert_eq!(own, table(&other, family, REFUSING)?);
        }
        Ok(())
    })
}

#[test]
fn without_kube_proxy_what_nobody_serves_any_more_is_refused_at_once_wherever_it_would_go()
-> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        lead_astray(&node)?;
        for family in Family::BOTH {
            let agent = Answering::on_intercept_address(&node, family)?;
            let rules = agent.rules(&["default/web"])?;
            let portal = agent.portal("default/web");
            on_node(&node, async || -> Result<()> {
                for place in [client.namespace(), node.namespace()] {
                    let left_hanging = datagram(place, portal).unwrap_err();
                    assert_eq!(left_hanging.kind(), ErrorKind::WouldBlock);
                }
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                for place in [client.namespace(), node.namespace()] {
                    assert_eq!(agent.asked_from(place, "default/web")?, "the agent");
                    assert_eq!(agent.udp_asked_from(place, "default/web")?, "the agent");
                }
                assert_eq!(backend.verify(&rules).await?.repairs, []);
                // The kernel sees no difference between this and a process that is killed.
                drop(backend);
                assert!(!has_table(&node, family, "edgemesh")?);
                for place in [client.namespace(), node.namespace()] {
                    check_refused(place, portal)?;
                }

                let mut next = nftables(family).await?;
                next.apply(&rules).await?;
                assert_eq!(
                    agent.asked_from(client.namespace(), "default/web")?,
                    "the agent"
                );
                next.remove().await?;
                assert!(!has_table(&node, family, REFUSING)?);
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn other_ports_the_agents_own_traffic_and_what_is_connected_already_are_let_through() -> Result<()>
{
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        let server = node.pod("server").create()?;
        let _portal = server.serve(80, Serve::Identity)?;
        let _other = server.serve(81, Serve::Identity)?;
        // A portal that leads somewhere without any NAT.
        let ip = IpAddr::from(server.ipv4());
        let mut rules = Ruleset::new(intercept(Family::V4), 20008, Mark::AGENT);
        let frontend = Frontend {
            ip,
            protocol: Protocol::Tcp,
            port: 80,
        };
        let comment = RuleComment::new("default/web");
        let to_port = 20007;
        rules.insert(
            frontend,
            PortalRule {
                comment,
                to_port,
                kernel: None,
            },
        )?;

        // Connections are tracked from the beginning.
        load(
            &node,
            "table ip tracks { chain all-new { type filter hook forward priority 0; \
             ct state new accept; }; }",
        )?;
        let [pod, host] = [client.namespace(), node.namespace()];
        let before = connect_from(pod, (ip, 80).into())?;
        on_node(&node, async || -> Result<()> {
            let mut backend = nftables(Family::V4).await?;
            backend.apply(&Arc::new(rules)).await?;
            Ok(())
        })??;
        for place in [pod, host] {
            let refused = connect_from(place, (ip, 80).into()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            request(connect_from(place, (ip, 81).into())?, "hello")?;
        }
        request(connect_as_agent(&node, (ip, 80).into())?, "hello")?;
        request(before, "hello")?;
        Ok(())
    })
}

#[test]
fn a_portal_is_taken_out_before_it_is_let_go_of() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            let [two, three] = [2, 3].map(|portals| rules_for(Family::V4, portals));
            let (two, three) = (two?, three?);
            let names = || -> Result<Vec<String>> {
                Ok(refused_portals(Family::V4)?.into_values().collect())
            };
            let mut backend = nftables(Family::V4).await?;
            backend.apply(&three).await?;
            assert_eq!(names()?.len(), 3);
            assert_eq!(backend.apply(&two).await?.lines, 1);
            assert_eq!(
                names()?,
                ["default/service-0:http", "default/service-1:http"]
            );
            backend.apply(&three).await?;
            assert_eq!(names()?.len(), 3);
            drop(backend);

            // What the next agent leaves alone is not refused by what this one left.
            let mut next = nftables(Family::V4).await?;
            next.apply(&two).await?;
            assert_eq!(names()?.len(), 2);
            assert_eq!(next.verify(&two).await?.repairs, []);
            Ok(())
        })?
    })
}

#[test]
fn what_others_do_to_the_table_is_put_right() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = nftables(Family::V4).await?;
            backend.apply(&rules).await?;
            let whole = table(&node, Family::V4, REFUSING)?;
            let altered = Repair::TableAltered(format!("ip {REFUSING}"));
            for (command, seen) in [
                ("flush ruleset", refused(Family::V4)),
                ("delete table ip edgemesh-refuse", refused(Family::V4)),
                (
                    "flush chain ip edgemesh-refuse refuse-host",
                    altered.clone(),
                ),
                ("flush set ip edgemesh-refuse portals", altered.clone()),
                (
                    "add element ip edgemesh-refuse portals { 10.96.0.9 . tcp . 80 }",
                    altered.clone(),
                ),
            ] {
                assert_eq!(backend.verify(&rules).await?.repairs, []);
                load(&node, command)?;
                assert_eq!(backend.verify(&rules).await?.repairs, [seen], "{command}");
                assert_eq!(table(&node, Family::V4, REFUSING)?, whole);
            }
            load(&node, "add table ip somebody-elses")?;
            assert_eq!(backend.verify(&rules).await?.repairs, []);

            load(&node, "flush set ip edgemesh-refuse portals")?;
            let more = rules_for(Family::V4, 1)?;
            backend.apply(&more).await?;
            assert_eq!(refused_portals(Family::V4)?.len(), 1);
            assert_eq!(backend.verify(&more).await?.repairs, []);
            Ok(())
        })?
    })
}

#[test]
fn where_kube_proxy_is_there_or_comes_nothing_refuses_what_it_serves() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        for mode in KUBE_PROXY_MODES {
            on_node(&node, async || -> Result<()> {
                let rules = rules_for(Family::V4, 3)?;
                let setting = BackendSetting::Nftables;
                let mut backend = Backend::open(Family::V4, setting).await?;
                backend.apply(&rules).await?;
                ensure!(has_table(&node, Family::V4, REFUSING)?, "{mode:?}: not yet");
                let kube_proxy = KubeProxy::start(&node, mode, &[])?;
                backend.reconsider(&rules).await?;
                assert_eq!(backend.verify(&rules).await?.repairs, []);
                ensure!(!has_table(&node, Family::V4, REFUSING)?, "{mode:?}: came");
                drop(backend);

                let mut next = Backend::open(Family::V4, setting).await?;
                load(&node, &render_refusing(&rules))?;
                next.apply(&rules).await?;
                ensure!(!has_table(&node, Family::V4, REFUSING)?, "{mode:?}: left");
                remove_kube_proxy(&node, mode)?;
                next.reconsider(&rules).await?;
                next.verify(&rules).await?;
                ensure!(
                    !has_table(&node, Family::V4, REFUSING)?,
                    "{mode:?}: restarts"
                );
                for _ in 0..5 {
                    next.verify(&rules).await?;
                }
                ensure!(has_table(&node, Family::V4, REFUSING)?, "{mode:?}: went");
                next.remove().await?;
                ensure!(!has_table(&node, Family::V4, REFUSING)?, "{mode:?}: ended");
                drop(kube_proxy);
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn what_a_killed_agent_left_is_removed_by_the_next_one_of_another_way_and_by_cleanup() -> Result<()>
{
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            let rules = rules_for(Family::V4, 2)?;
            load(&node, &render_refusing(&rules))?;
            let mut iptables = on_node::backend(Family::V4, edgemesh_lab::Flavour::Nft).await?;
            iptables.apply(&rules).await?;
            assert!(!has_table(&node, Family::V4, REFUSING)?);
            iptables.remove().await?;

            load(&node, &render_refusing(&rules))?;
            let done = cleanup(&[]).await;
            assert!(
                done.removed
                    .contains(&"the nftables table ip edgemesh-refuse".to_owned()),
                "{done}"
            );
            assert!(!has_table(&node, Family::V4, REFUSING)?);
            Ok(())
        })?
    })
}

#[test]
fn the_one_before_leaves_the_table_to_the_one_that_took_over() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            let [two, three] = [2, 3].map(|portals| rules_for(Family::V4, portals));
            let (two, three) = (two?, three?);
            let mut first = nftables(Family::V4).await?;
            first.apply(&two).await?;
            let mut next = nftables(Family::V4).await?;
            next.apply(&three).await?;
            first.let_go().await?;
            assert_eq!(refused_portals(Family::V4)?.len(), 3);
            assert_eq!(next.verify(&three).await?.repairs, []);
            Ok(())
        })?
    })
}

fn load(node: &Node, text: &str) -> Result<()> {
    node.program("nft").args(["-f", "-"]).input(text).run()?;
    Ok(())
}

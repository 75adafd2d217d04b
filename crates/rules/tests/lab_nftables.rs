//! The nftables backend on a real kernel: what it makes, who changes it, who answers.

mod on_node;
mod shown;

use anyhow::Result;
use edgemesh_lab::{
    ClusterService, KubeProxy, KubeProxyMode, Node, Place, Serve, await_until, test,
};
use edgemesh_rules::{
    Backend, BackendKind, BackendSetting, Change, Family, Flavour, OwnChain, Repair, cleanup,
    own_tables, render_nftables,
};
use on_node::{
    Answering, KUBE_PROXY_MODES, nat, nftables, on_node, remove_kube_proxy, rules_for,
    start_kube_proxy,
};
use shown::{has_table, table};

#[test]
fn what_nft_lists_is_what_was_rendered() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let other = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            let rules = rules_for(family, 5)?;
            let own = on_node(&node, async || -> Result<String> {
                let mut backend = nftables(family).await?;
                let applied = backend.apply(&rules).await?;
                assert_eq!(applied.change, Change::Rewritten);
                table(&node, family, "edgemesh")
            })??;
            load(&other, &render_nftables(&rules))?;
            assert_eq!(own, table(&other, family, "edgemesh")?);
        }
        Ok(())
    })
}

#[test]
fn nobody_else_can_flush_or_change_the_table_and_it_goes_without_a_trace() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = nftables(Family::V4).await?;
            assert_eq!(ruleset(&node)?, "", "opening it changed something");
            backend.apply(&rules).await?;
            let before = table(&node, Family::V4, "edgemesh")?;
            node.program("nft").args(["flush", "ruleset"]).run()?;
            for refused in [
                "delete table ip edgemesh",
                "flush table ip edgemesh",
                "flush set ip edgemesh alive",
                "flush map ip edgemesh portals",
            ] {
                assert!(load(&node, refused).is_err(), "{refused}");
            }
            assert_eq!(table(&node, Family::V4, "edgemesh")?, before);
            let verified = backend.verify(&rules).await?;
            // But for that which is to outlive the agent.
            let refusing = "ip edgemesh-refuse".to_owned();
            let repairs = vec![Repair::TableMissing(refusing)];
            assert_eq!((verified.repairs, verified.read_back), (repairs, false));
            let again = backend.apply(&rules).await?;
            assert_eq!((again.change, again.lines), (Change::None, 0));

            assert_eq!(backend.remove().await?.rules, 3);
            assert!(backend.remove().await?.is_nothing());
            // What goes on until the process ends.
            let left = table(&node, Family::V4, "edgemesh")?;
            assert!(!left.contains("set ") && !left.contains("map "), "{left}");
            assert_eq!(left.matches("chain ").count(), 1, "{left}");
            assert_eq!(backend.apply(&rules).await?.change, Change::Rewritten);
            drop(backend);
            let left = node.program("nft").args(["list", "tables"]).run()?;
            assert_eq!(left.trim_end(), "table ip edgemesh-refuse");
            Ok(())
        })?
    })
}

#[test]
fn portals_lead_to_the_agent_and_its_own_address_does_not() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        for family in Family::BOTH {
            let agent = Answering::on_intercept_address(&node, family)?;
            let rules = agent.rules(&["default/web"])?;
            on_node(&node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                for place in [client.namespace(), node.namespace()] {
                    for _ in 0..2 {
                        assert_eq!(agent.asked_from(place, "default/web")?, "the agent");
                        assert_eq!(agent.udp_asked_from(place, "default/web")?, "the agent");
                    }
                    let refused = agent.asked_directly_from(place).unwrap_err();
                    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
                }
                assert_eq!(agent.asked_by_itself(&node)?, "the agent");
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn we_decide_before_kube_proxy_in_every_mode_whoever_comes_first() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        let server = node.pod("server").create()?;
        let _server = server.serve(8080, Serve::Identity)?;
        let _udp = server.serve(8080, Serve::UdpIdentity)?;
        let agent = Answering::on_intercept_address(&node, Family::V4)?;
        let rules = agent.rules(&["default/web"])?;
        let check = |who: &str| -> Result<()> {
            for place in [client.namespace(), node.namespace()] {
                assert_eq!(agent.asked_from(place, "default/web")?, who);
                assert_eq!(agent.udp_asked_from(place, "default/web")?, who);
            }
            Ok(())
        };
        let portal = agent.portal("default/web");
        let service = ClusterService::new("default/web")
            .cluster_ip(&portal.ip().to_string())
            .tcp("http", portal.port(), 8080)
            .udp("dns", portal.port(), 8080)
            .endpoint(&server);
        for mode in KUBE_PROXY_MODES {
            on_node(&node, async || -> Result<()> {
                let mut backend = nftables(Family::V4).await?;
                let kube_proxy = KubeProxy::start(&node, mode, std::slice::from_ref(&service))?;
                check("server")?;
                backend.apply(&rules).await?;
                check("the agent")?;
                remove_kube_proxy(&node, mode)?;
                kube_proxy.restart()?;
                check("the agent")?;
                backend.remove().await?;
                check("server")?;
                remove_kube_proxy(&node, mode)
            })??;
        }
        Ok(())
    })
}

#[test]
fn what_is_told_of_a_table_is_what_stands_in_the_kernel() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        for family in Family::BOTH {
            let agent = Answering::on_intercept_address(&node, family)?;
            let rules = agent.rules(&["default/web"])?;
            on_node(&node, async || -> Result<()> {
                assert_eq!(own_tables(family)?, []);
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                let packets = || -> Result<Vec<u64>> {
                    let tables = own_tables(family)?;
                    let portals = tables.iter().flat_map(|table| table.portals.values());
                    Ok(portals.map(|element| element.packets).collect())
                };
                assert_eq!(packets()?, [0, 0]);
                let places = [client.namespace(), node.namespace()];
                // A link that was made just now may lose the first packet, which is counted.
                for place in places {
                    agent.asked_from(place, "default/web")?;
                }
                let before = packets()?;
                for place in places {
                    agent.asked_from(place, "default/web")?;
                }
                assert_eq!(packets()?, [before[0] + 2, 0]);

                let tables = own_tables(family)?;
                let [found] = &tables[..] else {
                    panic!("{tables:?}");
                };
                assert_eq!((found.family, found.name), (family, "edgemesh"));
                assert!(found.open_for.is_some());
                let [container, host] = OwnChain::BOTH.map(|chain| &found.chains[&chain]);
                assert_eq!(
                    (container.name.as_str(), container.place),
                    ("portals-container", 6)
                );
                assert_eq!((host.name.as_str(), host.place), ("portals-host", 7));
                assert_eq!((container.priority, host.priority), (-110, -110));
                for (frontend, element) in &found.portals {
                    assert_eq!(
                        found.map_of(element),
                        format!("{} edgemesh portals", family.nft_name())
                    );
                    assert!(element.to_agent && element.has_agents_part());
                    let rule = rules.portals().get(frontend).unwrap();
                    assert_eq!(element.to, rules.destination(rule));
                    assert_eq!(
                        (element.comment.as_str(), element.refused),
                        ("default/web", false)
                    );
                    assert!(
                        render_nftables(&rules).contains(&element.text),
                        "{element:?}"
                    );
                }
                backend.remove().await?;
                assert_eq!(own_tables(family)?, []);
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn a_table_that_nobody_owns_is_taken_over_in_one_step() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            let left = rules_for(Family::V4, 2)?;
            let wanted = rules_for(Family::V4, 3)?;
            load(&node, &render_nftables(&left))?;
            let mut backend = nftables(Family::V4).await?;
            backend.apply(&wanted).await?;
            assert_eq!(backend.verify(&wanted).await?.repairs, []);
            assert!(table(&node, Family::V4, "edgemesh")?.contains("service-2"));
            assert!(!has_table(&node, Family::V4, "edgemesh-2")?);
            Ok(())
        })?
    })
}

#[test]
fn what_an_agent_left_that_went_another_way_is_removed_once_the_rules_stand() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            let rules = rules_for(Family::V4, 2)?;
            for flavour in edgemesh_lab::Flavour::ALL {
                on_node::backend(Family::V4, flavour)
                    .await?
                    .apply(&rules)
                    .await?;
                let mut backend = nftables(Family::V4).await?;
                backend.apply(&rules).await?;
                assert!(!nat(&node, flavour, Family::V4)?.contains("EDGEMESH-"));
                backend.remove().await?;
            }
            load(&node, &render_nftables(&rules))?;
            let mut iptables = on_node::backend(Family::V4, edgemesh_lab::Flavour::Nft).await?;
            iptables.apply(&rules).await?;
            assert!(!has_table(&node, Family::V4, "edgemesh")?);
            Ok(())
        })?
    })
}

#[test]
fn cleanup_removes_tables_that_nobody_owns_and_names_those_that_are_owned() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            load(&node, &render_nftables(&*rules_for(Family::V4, 2)?))?;
            let rules = rules_for(Family::V6, 2)?;
            let mut backend = nftables(Family::V6).await?;
            backend.apply(&rules).await?;
            let done = cleanup(&[]).await;
            assert_eq!(done.removed, ["the nftables table ip edgemesh"]);
            let [held] = &done.problems[..] else {
                panic!("{done}");
            };
            assert!(held.starts_with("the nftables table ip6 edgemesh belongs to a process"));
            backend.remove().await?;
            drop(backend);
            assert_eq!(cleanup(&[]).await.to_string(), "nothing to remove\n");
            Ok(())
        })?
    })
}

#[test]
fn kube_proxys_mode_is_followed_from_iptables_to_nftables_and_back() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let flavour = edgemesh_lab::Flavour::Nft;
        start_kube_proxy(&node, flavour)?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = Backend::open(Family::V4, BackendSetting::default()).await?;
            backend.apply(&rules).await?;
            assert_eq!(backend.reconsider(&rules).await?, None);

            // As in a cluster of one family.
            KubeProxy::start(&node, KubeProxyMode::Nftables, &[])?;
            let words = ["delete", "table", "ip6", "kube-proxy"];
            node.program("nft").args(words).run()?;
            let switched = backend
                .reconsider(&rules)
                .await?
                .map(|s| s.choice.to_string());
            assert_eq!(
                switched.as_deref(),
                Some("nftables: kube-proxy runs in nftables mode (it has the table ip kube-proxy)")
            );
            assert!(has_table(&node, Family::V4, "edgemesh")?);
            assert!(!nat(&node, flavour, Family::V4)?.contains("EDGEMESH-"));
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            assert_eq!(backend.reconsider(&rules).await?, None);
            let v6 = Backend::open(Family::V6, BackendSetting::default()).await?;
            assert_eq!(v6.choice().kind, BackendKind::Iptables(Flavour::Nft));

            remove_kube_proxy(&node, KubeProxyMode::Nftables)?;
            assert!(backend.reconsider(&rules).await?.is_some());
            assert_eq!(backend.choice().kind, BackendKind::Iptables(Flavour::Nft));
            assert!(!has_table(&node, Family::V4, "edgemesh")?);
            let text = nat(&node, flavour, Family::V4)?;
            assert!(text.contains(OwnChain::Host.name()));
            Ok(())
        })?
    })
}

#[test]
fn a_gate_that_closed_for_want_of_signs_of_life_is_opened_again() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let rules = rules_for(Family::V4, 1)?;
        on_node(&node, async || -> Result<()> {
            // Without a pulse: as if the agent hung.
            let mut backend = Backend::open(Family::V4, BackendSetting::Nftables).await?;
            backend.apply(&rules).await?;
            await_until(
                std::time::Duration::from_secs(10),
                "the gate is closed",
                || {
                    table(&node, Family::V4, "edgemesh")
                        .is_ok_and(|text| !text.contains("elements = { original"))
                },
            )?;
            let repairs = backend.verify(&rules).await?.repairs;
            assert_eq!(repairs, [Repair::GateClosed]);
            assert!(table(&node, Family::V4, "edgemesh")?.contains("elements = { original"));
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            Ok(())
        })?
    })
}

#[test]
fn where_lo_is_exempt_from_connection_tracking_the_gate_stays_open_all_the_same() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        load(
            &node,
            "table ip raw { chain output { type filter hook output priority raw; \
             oifname lo notrack; }; }",
        )?;
        let rules = rules_for(Family::V4, 1)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = nftables(Family::V4).await?;
            backend.apply(&rules).await?;
            // As the agent does; in all longer than the gate stays open by itself.
            let mut period = tokio::time::interval(std::time::Duration::from_secs(1));
            for _ in 0..6 {
                period.tick().await;
                assert_eq!(backend.verify(&rules).await?.repairs, []);
            }
            assert!(table(&node, Family::V4, "edgemesh")?.contains("elements = { original"));
            Ok(())
        })?
    })
}

fn load(node: &Node, text: &str) -> Result<()> {
    node.program("nft").args(["-f", "-"]).input(text).run()?;
    Ok(())
}

fn ruleset(node: &Node) -> Result<String> {
    node.program("nft").args(["list", "ruleset"]).run()
}

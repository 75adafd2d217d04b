//! The intercept address, the last-resort routes and the clean-up on a real kernel.

mod on_node;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::{Node, Place, connect_from, test, test_each_flavour};
use edgemesh_rules::{
    BackendSetting, Family, HostNetwork, HostSupport, PortalAddresses, cleanup, host_supports,
};
use on_node::{backend, cluster_ip, intercept, labs, nat, on_node, rules_for, start_kube_proxy};

fn addresses(family: Family, count: u16) -> PortalAddresses {
    (0..count)
        .map(|number| (cluster_ip(family, number), 1))
        .collect()
}

fn ip(node: &Node, words: &str) -> Result<String> {
    node.program("ip").args(words.split(' ')).run()
}

fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// All routes, rules and addresses of the node, but for what comes by itself a little
/// after a device: carrier and link-local addresses.
fn network(node: &Node) -> Result<String> {
    let mut text = String::new();
    for family in Family::BOTH {
        for what in ["route show table all", "rule show", "-oneline address show"] {
            text += &ip(node, &format!("{} {what}", option(family)))?;
        }
    }
    Ok(text
        .lines()
        .filter(|line| !line.contains("fe80:") && !line.contains("ff00:"))
        .map(|line| line.replace(" linkdown", "").trim_end().to_owned() + "\n")
        .collect())
}

/// The routing table that the family's routes are in.
fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "default",
        Family::V6 => "9616",
    }
}

fn routes(node: &Node, family: Family) -> Result<usize> {
    let table = node
        .program("ip")
        .args([option(family), "route", "show", "table", table(family)])
        .output()?;
    Ok(table.stdout.lines().count())
}

#[expect(clippy::print_stdout, reason = "for whoever runs it with --nocapture")]
fn say(family: Family, what: &str, took: Duration) {
    println!("{family}: {what}: {took:.1?}");
}

#[test]
fn a_host_without_any_route_gets_to_its_portals_and_nothing_is_left_behind() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").without_default_route().create()?;
        let before = network(&node)?;
        on_node(&node, async || -> Result<()> {
            for family in Family::BOTH {
                let mut host = HostNetwork::open(intercept(family))?;
                let none = PortalAddresses::default();
                let changes = host.apply(&none).await?;
                // Any rule slows every packet down: there is none before it is needed, and
                // none at all in IPv4.
                assert!(changes.address && !changes.rule);
                let listener = TcpListener::bind((intercept(family), 20007))?;
                backend(family, flavour)
                    .await?
                    .apply(&rules_for(family, 2)?)
                    .await?;
                let to = SocketAddr::new(cluster_ip(family, 1), 80);
                assert!(connect_from(node.namespace(), to).is_err(), "{family}");
                let changes = host.apply(&addresses(family, 2)).await?;
                assert_eq!(changes.routes_added, 2);
                assert_eq!(changes.rule, family == Family::V6);
                let mut accepted = std::thread::scope(|scope| -> Result<_> {
                    let client = scope.spawn(|| connect_from(node.namespace(), to));
                    let (accepted, _) = listener.accept()?;
                    client.join().unwrap()?;
                    Ok(accepted)
                })?;
                accepted.write_all(b"hello")?;
                let changes = host.apply(&none).await?;
                assert_eq!(changes.routes_removed, 2);
                assert_eq!(changes.rule, family == Family::V6);
                host.remove().await?;
                assert!(host.remove().await?.is_nothing());
            }
            Ok(())
        })??;
        assert_eq!(network(&node)?, before);
        Ok(())
    })
}

#[test]
fn whatever_is_taken_away_is_put_back() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            for family in Family::BOTH {
                let wanted = addresses(family, 3);
                let (option, table) = (option(family), table(family));
                let mut host = HostNetwork::open(intercept(family))?;
                host.apply(&wanted).await?;
                assert!(host.verify(&wanted).await?.is_nothing());
                let prefix = family.host_prefix();
                let mut losses = vec![
                    format!("{option} route del {} table {table}", cluster_ip(family, 1)),
                    format!("{option} route flush table {table}"),
                    format!("{option} address del {}/{prefix} dev lo", intercept(family)),
                ];
                if family == Family::V6 {
                    losses.push(format!("{option} rule del priority 32800"));
                }
                for loss in losses {
                    ip(&node, &loss)?;
                    let changes = host.verify(&wanted).await?;
                    assert!(!changes.is_nothing(), "{loss} went unnoticed");
                    assert!(host.verify(&wanted).await?.is_nothing(), "{loss}");
                    assert_eq!(routes(&node, family)?, 3, "{loss}");
                }
                host.remove().await?;
            }
            Ok(())
        })?
    })
}

#[test]
fn ten_thousand_routes_come_and_go_by_their_difference() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            for family in Family::BOTH {
                let mut host = HostNetwork::open(intercept(family))?;
                let many = host.apply(&addresses(family, 10_000)).await?;
                assert_eq!(many.routes_added, 10_000);
                say(family, "10000 routes", many.took);
                let looked = host.verify(&addresses(family, 10_000)).await?;
                say(family, "looked at", looked.took);
                assert!(looked.is_nothing());
                let one = host.apply(&addresses(family, 10_001)).await?;
                assert_eq!((one.routes_added, one.routes_removed), (1, 0));
                let fewer = host.apply(&addresses(family, 9_999)).await?;
                assert_eq!((fewer.routes_added, fewer.routes_removed), (0, 2));
                say(family, "one more", one.took);
                assert_eq!(routes(&node, family)?, 9_999);

                let mut next = HostNetwork::open(intercept(family))?;
                let taken_over = next.apply(&addresses(family, 10_000)).await?;
                assert_eq!((taken_over.routes_added, taken_over.routes_removed), (1, 0));
                assert!(!taken_over.address && !taken_over.rule);
                assert_eq!(next.remove().await?.routes_removed, 10_000);
            }
            Ok(())
        })?
    })
}

#[test]
fn a_route_that_another_version_left_otherwise_is_replaced() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            for family in Family::BOTH {
                let (option, table) = (option(family), table(family));
                let tag = format!("table {table} proto 237");
                let [first, second, ninth] = [1, 2, 9].map(|number| cluster_ip(family, number));
                for route in [
                    format!("{first} dev lo {tag}"),
                    format!("local {second} dev lo {tag}"),
                    format!("blackhole {ninth} {tag}"),
                ] {
                    ip(&node, &format!("{option} route add {route}"))?;
                }
                let mut host = HostNetwork::open(intercept(family))?;
                let changes = host.apply(&addresses(family, 3)).await?;
                assert_eq!((changes.routes_added, changes.routes_removed), (3, 3));
                let shown = ip(&node, &format!("{option} route show table {table}"))?;
                let source = format!("src {}", intercept(family));
                let right = shown.lines().filter(|line| line.contains(&source));
                assert_eq!(right.count(), 3, "{shown}");
                assert_eq!(shown.lines().count(), 3, "{shown}");
                let mut next = HostNetwork::open(intercept(family))?;
                assert!(next.apply(&addresses(family, 3)).await?.is_nothing());
            }
            Ok(())
        })?
    })
}

#[test]
fn the_rule_that_ipv4_needed_once_goes_with_what_it_led_to() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let before = network(&node)?;
        ip(&node, "rule add iif lo lookup 9616 priority 32800")?;
        let route = "route add local 10.96.0.1 dev lo table 9616 proto 237";
        ip(&node, route)?;
        on_node(&node, async || -> Result<()> {
            let mut host = HostNetwork::open(intercept(Family::V4))?;
            host.apply(&addresses(Family::V4, 3)).await?;
            assert!(!network(&node)?.contains("9616"));
            ip(&node, route)?;
            assert_eq!(host.remove().await?.routes_removed, 4);
            Ok(())
        })??;
        assert_eq!(network(&node)?, before);
        Ok(())
    })
}

#[test]
fn an_address_or_a_route_that_somebody_else_put_there_stays() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let theirs = cluster_ip(Family::V4, 7);
        ip(&node, "address add 169.254.96.16/32 dev lo scope host")?;
        ip(&node, &format!("route add {theirs} dev lo table default"))?;
        let before = network(&node)?;
        on_node(&node, async || -> Result<()> {
            let mut host = HostNetwork::open(intercept(Family::V4))?;
            let changes = host.apply(&addresses(Family::V4, 10)).await?;
            assert!(!changes.address);
            host.remove().await?;
            Ok(())
        })??;
        assert_eq!(network(&node)?, before);
        Ok(())
    })
}

#[test]
fn cleanup_finds_both_families_and_flavours_whatever_the_settings_were() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        start_kube_proxy(&node, edgemesh_lab::Flavour::Nft)?;
        let empty = "*nat\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";
        for family in Family::BOTH {
            edgemesh_lab::Flavour::Legacy.restore(&node, labs(family), empty)?;
        }
        let rules = || -> Result<String> {
            let mut text = network(&node)?;
            for flavour in edgemesh_lab::Flavour::ALL {
                for family in Family::BOTH {
                    text += &nat(&node, flavour, family)?;
                }
            }
            Ok(text)
        };
        let before = rules()?;
        on_node(&node, async || -> Result<()> {
            assert_eq!(cleanup(&[]).await.to_string(), "nothing to remove\n");
            for family in Family::BOTH {
                let rules = rules_for(family, 3)?;
                let mut nft = backend(family, edgemesh_lab::Flavour::Nft).await?;
                nft.apply(&rules).await?;
                // It removes what the first one left; that puts it back.
                let mut legacy = backend(family, edgemesh_lab::Flavour::Legacy).await?;
                legacy.apply(&rules).await?;
                nft.verify(&rules).await?;
                let mut host = HostNetwork::open(intercept(family))?;
                host.apply(&addresses(family, 3)).await?;
            }
            assert_eq!(
                cleanup(&[]).await.to_string(),
                "removed 18 rules and 2 jumps (iptables, nft)\n\
                 removed 18 rules and 2 jumps (iptables, legacy)\n\
                 removed the IP sets EDGEMESH-* (IPv4)\n\
                 removed the intercept address, 3 last-resort routes (IPv4)\n\
                 removed 18 rules and 2 jumps (ip6tables, nft)\n\
                 removed 18 rules and 2 jumps (ip6tables, legacy)\n\
                 removed the IP sets EDGEMESH-* (IPv6)\n\
                 removed the intercept address, the rule of priority 32800, 3 last-resort \
                 routes (IPv6)\n"
            );
            assert_eq!(cleanup(&[]).await.to_string(), "nothing to remove\n");
            Ok(())
        })??;
        assert_eq!(rules()?, before);
        Ok(())
    })
}

#[test]
fn looking_leaves_no_table_behind() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || -> Result<()> {
            cleanup(&[]).await;
            for family in Family::BOTH {
                let support = host_supports(family, BackendSetting::default()).await;
                assert_eq!(support, HostSupport::Available);
            }
            Ok(())
        })??;
        assert_eq!(node.program("nft").args(["list", "ruleset"]).run()?, "");
        for names in ["ip_tables_names", "ip6_tables_names"] {
            let file = format!("/proc/net/{names}");
            assert_eq!(node.program("cat").arg(file).run()?, "");
        }
        Ok(())
    })
}

#[test]
fn a_host_without_ipv6_is_no_error_and_says_why() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").without_ipv6().create()?;
        on_node(&node, async || {
            let v6 = host_supports(Family::V6, BackendSetting::default()).await;
            assert!(
                v6.to_string()
                    .starts_with("unavailable: IPv6 is switched off")
            );
            let v4 = host_supports(Family::V4, BackendSetting::default()).await;
            assert_eq!(v4, HostSupport::Available);
        })
    })
}

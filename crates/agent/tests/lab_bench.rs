//! The benchmark suite runs, with as little work as there can be: what it measures here says
//! nothing but that it can still be measured.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_bench::part::{Effort, Found, Part};
use edgemesh_lab::test;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");

fn little(works: &[&str], contenders: &[&str]) -> Effort {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Effort {
        agent: PathBuf::from(AGENT),
        base: None,
        rounds: 1,
        window: Duration::from_millis(50),
        contenders: words(contenders),
        works: words(works),
        services: vec![3],
        connections: 20,
    }
}

/// Every one of these has a figure in a table, and nothing failed.
fn check(found: &Found, table: &str, lines: &[&str]) -> Result<()> {
    let comparison = found
        .comparisons
        .iter()
        .find(|comparison| comparison.name == table)
        .with_context(|| format!("no table {table}; {:?}", found.remarks))?;
    for name in lines {
        let measured = comparison
            .lines
            .iter()
            .any(|line| line.name == *name && !line.figures[0].is_empty());
        ensure!(measured, "{name} is not in {table}: {:?}", found.remarks);
    }
    let failures: Vec<&String> = found
        .remarks
        .iter()
        .filter(|remark| remark.contains(" failed: "))
        .collect();
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

#[test]
fn two_pods_of_a_node_are_measured_with_every_way_between_them() -> Result<()> {
    test(|lab| {
        let works = [
            "throughput-1",
            "connections",
            "requests",
            "datagram-answers",
        ];
        let effort = little(&works, &["kube-proxy", "agent", "HAProxy"]);
        let found = Part::OneNode.measure(lab, &effort)?;
        let lines = [
            "direct",
            "kube-proxy's rules, iptables",
            "kube-proxy's rules, nftables",
            "agent, user path, iptables",
            "agent, user path, nftables",
        ];
        for work in works {
            check(&found, work, &lines)?;
        }
        Ok(())
    })
}

#[test]
fn idle_connections_are_measured() -> Result<()> {
    test(|lab| {
        let found = Part::Memory.measure(lab, &little(&[], &["agent"]))?;
        check(&found, "memory", &["agent, user path, nftables"])
    })
}

#[test]
fn services_are_measured_from_their_rules_to_their_connections() -> Result<()> {
    test(|lab| {
        let found = Part::Services.measure(lab, &little(&[], &[]))?;
        let lines = ["agent, iptables", "agent, nftables"];
        check(&found, "services-3", &lines)?;
        check(&found, "connections-at-3", &lines)
    })
}

#[test]
fn the_tunnel_is_measured_beside_plain_tcp() -> Result<()> {
    test(|lab| {
        let effort = little(&["throughput-1", "connections"], &["agent"]);
        let found = Part::Tunnel.measure(lab, &effort)?;
        let lines = [
            "plain TCP through the NAT",
            "agent, to the cloud",
            "agent, edge to edge, relayed",
        ];
        check(&found, "tunnel-throughput-1", &lines)?;
        check(&found, "tunnel-connections", &lines)
    })
}

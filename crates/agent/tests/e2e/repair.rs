//! Whatever is taken from the agent's rules comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::{Family, await_ok, test_each_flavour};

use crate::cluster::{Cluster, PATIENCE, REPAIRED};
use crate::portals::{ENTRIES, Entry};

#[test]
fn flushed_tables_and_deleted_jumps_come_back() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, tables_and_jumps))
}

#[test]
fn each_deleted_rule_comes_back() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, rule_by_rule))
}

fn tables_and_jumps(cluster: &mut Cluster) -> Result<()> {
    let mut kube_proxy = cluster.start_kube_proxy()?;
    let before = cluster.settled_foreign_rules()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;

    for entry in ENTRIES {
        let start = Instant::now();
        delete_jump(cluster, entry)?;
        let what = format!("jump deleted from {}: repaired", entry.from);
        cluster.measure(start, REPAIRED, &what, || repaired(cluster))?;
    }
    for entry in ENTRIES {
        let start = Instant::now();
        delete_chain(cluster, entry)?;
        let what = format!("{} deleted: repaired", entry.to);
        cluster.measure(start, REPAIRED, &what, || repaired(cluster))?;
    }
    cluster.foreign_rules_are(&before)?;

    let start = Instant::now();
    cluster.iptables(["-t", "nat", "-F"])?;
    cluster.measure(start, REPAIRED, "iptables -t nat -F: repaired", || {
        repaired(cluster)
    })?;
    // Not every kube-proxy notices that its chains were emptied; a new one fills them.
    kube_proxy.kill()?;
    let _kube_proxy = cluster.start_kube_proxy()?;
    let start = Instant::now();
    cluster.measure(
        start,
        REPAIRED,
        "kube-proxy back after it: the agent stands first",
        || repaired(cluster),
    )?;
    cluster.foreign_rules_are_in_any_order(&before)
}

fn rule_by_rule(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    let before = cluster.settled_foreign_rules()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let mut slowest = Duration::ZERO;
    let mut deleted = 0;
    for entry in ENTRIES {
        let whole = rules(cluster, entry)?;
        ensure!(!whole.is_empty(), "{} is empty", entry.to);
        for rule in &whole {
            slowest = slowest.max(delete_and_await(cluster, entry, rule, &whole)?);
            deleted += 1;
        }
    }
    cluster.say(&format!(
        "{deleted} rules deleted one by one: each repaired after at most {:.2} s (promised: {} s)",
        slowest.as_secs_f64(),
        REPAIRED.as_secs()
    ));
    repaired(cluster)?;
    cluster.foreign_rules_are(&before)
}

fn repaired(cluster: &Cluster) -> Result<()> {
    cluster.in_force()?;
    cluster.answered_by_agent()
}

fn delete_jump(cluster: &Cluster, entry: Entry) -> Result<()> {
    let place = cluster.portals()?.place(entry, entry.to);
    let number = place.map_or_else(String::new, |place| (place + 1).to_string());
    cluster.iptables(["-t", "nat", "-D", entry.from, &number])?;
    Ok(())
}

/// In one transaction: between two the agent may have put something back already.
fn delete_chain(cluster: &Cluster, Entry { from, to }: Entry) -> Result<()> {
    let place = cluster.portals()?.place(Entry { from, to }, to);
    let number = place.map_or_else(String::new, |place| (place + 1).to_string());
    let lines = format!("*nat\n-D {from} {number}\n-F {to}\n-X {to}\nCOMMIT\n");
    cluster.flavour.restore(&cluster.node, Family::V4, &lines)
}

/// The rules of a chain, sorted: beyond the first ones their order means nothing.
fn rules(cluster: &Cluster, entry: Entry) -> Result<Vec<String>> {
    let portals = cluster.portals()?;
    let mut rules: Vec<String> = portals
        .texts(entry)
        .into_iter()
        .map(str::to_owned)
        .collect();
    rules.sort();
    Ok(rules)
}

fn delete_and_await(
    cluster: &Cluster,
    entry: Entry,
    rule: &str,
    whole: &[String],
) -> Result<Duration> {
    let portals = cluster.portals()?;
    let place = portals.texts(entry).iter().position(|text| *text == rule);
    ensure!(place.is_some(), "{} no longer has {rule}", entry.to);
    let number = place.map_or_else(String::new, |place| (place + 1).to_string());
    let start = Instant::now();
    cluster.iptables(["-t", "nat", "-D", entry.to, &number])?;
    await_ok(PATIENCE, &format!("{} has {rule} again", entry.to), || {
        let now = rules(cluster, entry)?;
        ensure!(now == whole, "it has {now:#?}");
        Ok(())
    })?;
    Ok(start.elapsed())
}

//! The agent stands before kube-proxy, whichever was started first or again.

use std::time::Instant;

use anyhow::{Result, ensure};
use edgemesh_lab::{Background, test_each_flavour};

use crate::cluster::{Cluster, DNS, DNS_TCP, PATIENCE, REPAIRED, WEB};
use crate::portals::ENTRIES;

#[test]
fn the_agent_stands_before_kube_proxy_whoever_starts_first() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        Cluster::with(lab, flavour, |cluster| {
            let kube_proxy = agent_first(cluster)?;
            let agent = kube_proxy_first(cluster)?;
            kube_proxy_again(cluster, kube_proxy)?;
            drop(agent);
            Ok(())
        })
    })
}

#[test]
fn a_stranger_that_insists_on_the_first_place_is_not_fought() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, stranger_first))
}

/// Ends with kube-proxy running and the agent stopped.
fn agent_first(cluster: &Cluster) -> Result<Background> {
    let start = Instant::now();
    let mut agent = cluster.start_agent()?;
    cluster.measure(
        start,
        REPAIRED,
        "agent started, no kube-proxy: it serves",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;
    let kube_proxy = cluster.start_kube_proxy()?;
    let start = Instant::now();
    cluster.measure(
        start,
        REPAIRED,
        "kube-proxy started after it: the agent stands first",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;
    let status = agent.stop(PATIENCE)?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(kube_proxy)
}

fn kube_proxy_first(cluster: &Cluster) -> Result<Background> {
    let before = cluster.settled_foreign_rules()?;
    cluster.answered_by_kube_proxy(&[WEB, DNS, DNS_TCP])?;
    let start = Instant::now();
    let agent = cluster.start_agent()?;
    cluster.measure(
        start,
        REPAIRED,
        "agent started after kube-proxy: it stands first",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;
    cluster.foreign_rules_are(&before)?;
    Ok(agent)
}

/// Restarted as it is, kube-proxy finds its jumps and leaves them; after a reboot or when
/// somebody took them away, it puts them on top.
fn kube_proxy_again(cluster: &Cluster, mut kube_proxy: Background) -> Result<()> {
    let before = cluster.foreign_rules()?;
    kube_proxy.kill()?;
    let mut kube_proxy = cluster.start_kube_proxy()?;
    cluster.in_force()?;
    cluster.answered_by_agent()?;
    cluster.foreign_rules_are_in_any_order(&before)?;

    kube_proxy.kill()?;
    for entry in ENTRIES {
        let place = cluster.portals()?.place(entry, "KUBE-SERVICES");
        let number = place.map_or_else(String::new, |place| (place + 1).to_string());
        cluster.iptables(["-t", "nat", "-D", entry.from, &number])?;
    }
    let _kube_proxy = cluster.start_kube_proxy()?;
    let start = Instant::now();
    cluster.measure(
        start,
        REPAIRED,
        "kube-proxy went on top: the agent stands first",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;
    cluster.foreign_rules_are_in_any_order(&before)
}

fn stranger_first(cluster: &mut Cluster) -> Result<()> {
    const STRANGER: &str = "CALI-STAND-IN";
    let _kube_proxy = cluster.start_kube_proxy()?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    cluster.iptables(["-t", "nat", "-N", STRANGER])?;
    for entry in ENTRIES {
        cluster.iptables(["-t", "nat", "-I", entry.from, "1", "-j", STRANGER])?;
    }
    // The repair shows that the agent has looked at the chains since.
    for entry in ENTRIES {
        cluster.iptables(["-t", "nat", "-F", entry.to])?;
    }
    let start = Instant::now();
    cluster.measure(
        start,
        REPAIRED,
        "chains emptied behind a stranger: repaired",
        || cluster.in_force(),
    )?;
    let portals = cluster.portals()?;
    for entry in ENTRIES {
        let place = portals.place(entry, STRANGER);
        ensure!(
            place == Some(0),
            "the stranger stands at {place:?} in {}",
            entry.from
        );
    }
    cluster.answered_by_agent()
}

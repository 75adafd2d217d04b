//! The agent's end, by whatever way, and what it leaves.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{Background, Place, test_each_flavour};

use crate::cluster::{Cluster, DNS, DNS_TCP, PATIENCE, REPAIRED, WEB, same_text};

#[test]
fn a_killed_agent_takes_over_what_it_left() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        Cluster::with(lab, flavour, |cluster| {
            let _kube_proxy = cluster.start_kube_proxy()?;
            let before = cluster.settled_foreign_rules()?;
            let mut agent = cluster.start_agent()?;
            cluster.await_in_force()?;
            second_agent_refuses(cluster)?;
            for _ in 0..2 {
                agent = kill_and_start(cluster, agent)?;
            }
            cluster.foreign_rules_are(&before)
        })
    })
}

#[test]
fn a_stopped_agent_and_cleanup_leave_the_node_as_it_was() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, stop_and_clean_up))
}

fn second_agent_refuses(cluster: &Cluster) -> Result<()> {
    let mut second = cluster.start_agent()?;
    let status = second.wait(PATIENCE)?;
    ensure!(!status.success(), "a second agent ended with {status}");
    cluster.in_force()
}

fn kill_and_start(cluster: &Cluster, mut agent: Background) -> Result<Background> {
    agent.kill()?;
    let start = Instant::now();
    let agent = cluster.start_agent()?;
    // Its predecessor's rules stand: only answers show that it has taken over.
    cluster.measure(
        start,
        REPAIRED,
        "killed and started again: it serves",
        || {
            cluster.in_force()?;
            cluster.answered_by_agent()
        },
    )?;
    Ok(agent)
}

fn stop_and_clean_up(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    cluster.settled_foreign_rules()?;
    let before = traces(cluster)?;
    let mut agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    let start = Instant::now();
    let status = agent.stop(PATIENCE)?;
    cluster.say(&format!(
        "SIGTERM: over after {:.2} s",
        start.elapsed().as_secs_f64()
    ));
    ensure!(status.success(), "the agent ended with {status}");
    is_as_it_was(cluster, &before)?;

    let mut agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    agent.kill()?;
    // The second time there is nothing left to remove, which is no error.
    for _ in 0..2 {
        cluster.agent.cleanup(&cluster.node).run()?;
        is_as_it_was(cluster, &before)?;
    }
    Ok(())
}

fn is_as_it_was(cluster: &Cluster, before: &str) -> Result<()> {
    cluster.portals()?.are_gone()?;
    same_text(before, &traces(cluster)?).context("something is left")?;
    cluster.answered_by_kube_proxy(&[WEB, DNS, DNS_TCP])
}

/// All on the node that the agent may touch.
fn traces(cluster: &Cluster) -> Result<String> {
    let mut text = cluster.foreign_rules()?;
    for family in ["-4", "-6"] {
        for question in [
            &["rule", "show"][..],
            &["route", "show", "table", "all"],
            &["address", "show"],
        ] {
            let ip = cluster.node.program("ip").arg(family).args(question);
            text += &format!("# {}\n{}", ip.line(), ip.run()?);
        }
    }
    Ok(text)
}

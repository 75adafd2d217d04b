//! A DaemonSet's upgrades: with maxSurge the next agent starts beside the one that runs and
//! takes over, without it one ends before the next starts. No request may fail in either.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{Background, Place, await_turn, connect_from, request, test_each_flavour};

use crate::cluster::{Cluster, PATIENCE, REPAIRED, WEB};

/// Of each kind.
const UPGRADES: usize = 5;

#[test]
fn no_request_fails_while_agents_are_upgraded_with_and_without_max_surge() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        Cluster::with(lab, flavour, |cluster| {
            let _kube_proxy = cluster.start_kube_proxy()?;
            let before = cluster.settled_foreign_rules()?;
            let agent = cluster.start_next_agent(0)?;
            cluster.await_in_force()?;
            let agent = unnoticed(cluster, || upgrade(cluster, agent))?;
            cluster.foreign_rules_are(&before)?;
            drop(agent);
            Ok(())
        })
    })
}

fn upgrade(cluster: &Cluster, mut agent: Background) -> Result<Background> {
    for number in 1..=UPGRADES {
        let since = Instant::now();
        let next = cluster.start_next_agent(number)?;
        cluster.measure(since, REPAIRED, "it took over", || {
            let taken = next.log().contains("this agent holds the node now");
            ensure!(taken, "{}", next.log_tail(5));
            Ok(())
        })?;
        end(&mut agent)?;
        cluster.in_force()?;
        cluster.answered_by_agent()?;
        agent = next;
    }
    for number in 1..=UPGRADES {
        end(&mut agent)?;
        agent = cluster.start_next_agent(UPGRADES + number)?;
        cluster.await_in_force()?;
    }
    Ok(agent)
}

fn end(agent: &mut Background) -> Result<()> {
    let status = agent.stop(PATIENCE)?;
    ensure!(
        status.success(),
        "it ended with {status}: {}",
        agent.log_tail(30)
    );
    Ok(())
}

/// Does `work` while pod and host ask all the time, none of whom may notice.
fn unnoticed<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    let places = [cluster.client.namespace(), cluster.node.namespace()];
    thread::scope(|scope| {
        let asking = places.map(|place| {
            scope.spawn(|| -> Result<usize> {
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    connect_from(place, WEB.address.parse()?)
                        .map_err(anyhow::Error::from)
                        .and_then(|stream| request(stream, "hello"))
                        .with_context(|| format!("after {asked} requests"))?;
                    asked += 1;
                    await_turn();
                }
                Ok(asked)
            })
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        for (asking, from) in asking.into_iter().zip(["a pod", "the host"]) {
            let asked = asking.join().unwrap_or_else(|_| bail!("a panic"));
            let asked = asked.with_context(|| format!("a request from {from} failed"))?;
            cluster.say(&format!("{asked} requests from {from}, none failed"));
        }
        done
    })
}

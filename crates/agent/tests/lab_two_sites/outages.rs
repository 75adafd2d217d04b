//! What is held goes on through cut uplinks, new addresses and relays that go away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::traffic::{HeldConnection, RequestLoop};
use edgemesh_lab::{Cut, Nat, Protocol, Sites, Traffic, await_until};

use crate::cluster::{Cluster, ECHO, IDENTITY};
use crate::figures::ms;
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, in_lab_within, play};

/// How long the uplinks are away: longer than it takes to notice and to give up all ways.
/// `EDGEMESH_LAB_CUT` names other seconds, for figures.
const CUT: Duration = Duration::from_secs(8);
/// TCP itself doubles the pauses between its attempts, so that what is held goes on up to as
/// long after a cut as that has lasted.
const VERY_LONG: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(20);
/// What a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection from one node to another that is held, and requests on others meanwhile.
struct Watched {
    name: String,
    held: HeldConnection,
    asked: RequestLoop,
}

impl Watched {
    fn begin(cluster: &Cluster, from: On, to: On) -> Result<Self> {
        let name = format!("{} to {}", from.name(), to.name());
        let (client, server) = (cluster.pod(from), At(to, Of::Pod));
        let watched = Self {
            held: client
                .hold(server.cluster_ip(ECHO), EVERY)
                .with_context(|| name.clone())?,
            asked: client.keep_asking(
                Protocol::Tcp,
                server.cluster_ip(IDENTITY),
                EVERY,
                PATIENCE,
            )?,
            name,
        };
        watched.held.await_echo(LONG)?;
        watched.held.forget_stalls();
        Ok(watched)
    }

    /// Waits until new connections are answered again and what is held goes on, and tells how
    /// long each did not; `since` is when, by the requests' clock, all was well again.
    fn recover(self, since: Duration) -> Result<()> {
        let held = self.recover_new(since)?;
        held.await_echo(VERY_LONG)?;
        Ok(())
    }

    /// As [`Self::recover`], but only looks once at what is held, and returns it.
    fn recover_new(self, since: Duration) -> Result<HeldConnection> {
        let Self { name, held, asked } = self;
        let answered = await_until(LONG, "new connections are answered", || {
            asked.log().since(since).answered() > 20
        });
        let log = asked.stop()?;
        let first = log.since(since).first_answer();
        let first = first.map(|first| first.saturating_sub(since));
        println!(
            "{name}: new: {} ms after it was well again, {} failed, longest gap {} ms; held: {}",
            first.map_or_else(|| "none".to_owned(), ms),
            log.failed(),
            ms(log.longest_gap()),
            held.report(),
        );
        answered.with_context(|| format!("{name}: {log}"))?;
        held.report().check_whole().with_context(|| name)?;
        Ok(held)
    }
}

#[test]
fn connections_go_on_and_new_ones_are_answered_after_uplinks_were_cut() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            let watched = through_a_cut(cluster)?;
            recover_all(watched)
        })
    })
}

/// Connections between all, after both edges' uplinks were away and came back: one without
/// anybody being told, the other unplugged.
fn through_a_cut(cluster: &Cluster) -> Result<[Watched; 5]> {
    let watched = [
        Watched::begin(cluster, On::Edge1, On::Cloud1)?,
        Watched::begin(cluster, On::Cloud2, On::Edge1)?,
        Watched::begin(cluster, On::Edge2, On::Cloud1)?,
        Watched::begin(cluster, On::Cloud2, On::Edge2)?,
        Watched::begin(cluster, On::Edge1, On::Edge2)?,
    ];
    cluster.await_way(On::Edge1, On::Edge2, "direct")?;
    cut_uplinks(cluster)?;
    Ok(watched)
}

/// Takes both edges' uplinks away and brings them back.
pub(crate) fn cut_uplinks(cluster: &Cluster) -> Result<()> {
    let uplinks = [
        (cluster.sites.edge1_site().uplink(), Cut::Silent),
        (cluster.sites.edge2_site().uplink(), Cut::Unplugged),
    ];
    let asked_for = std::env::var("EDGEMESH_LAB_CUT").ok();
    let seconds = asked_for.map(|seconds| seconds.parse()).transpose()?;
    let cut_for = seconds.map_or(CUT, Duration::from_secs);
    let began = Instant::now();
    for (uplink, cut) in uplinks {
        uplink.cut(cut)?;
    }
    await_until(cut_for + LONG, "the time is over", || {
        began.elapsed() >= cut_for
    })?;
    for (uplink, _) in uplinks {
        uplink.restore()?;
    }
    Ok(())
}

/// Since now.
fn recover_all<const N: usize>(watched: [Watched; N]) -> Result<()> {
    let since = watched.each_ref().map(|watched| watched.asked.now());
    for (watched, since) in watched.into_iter().zip(since) {
        watched.recover(since)?;
    }
    Ok(())
}

/// Plays `change` while connections of edge1 are held, straight and, to edge2, relayed.
fn through(change: impl FnOnce(&mut Cluster) -> Result<()>, cluster: &mut Cluster) -> Result<()> {
    let watched = [
        Watched::begin(cluster, On::Edge1, On::Cloud1)?,
        Watched::begin(cluster, On::Cloud2, On::Edge1)?,
        Watched::begin(cluster, On::Edge1, On::Edge2)?,
    ];
    cluster.await_way(On::Edge1, On::Cloud1, "direct")?;
    cluster.await_way(On::Cloud2, On::Edge1, "direct")?;
    let since = watched.each_ref().map(|watched| watched.asked.now());
    change(cluster)?;
    for (watched, since) in watched.into_iter().zip(since) {
        watched.recover(since)?;
    }
    Ok(())
}

#[test]
fn connections_go_on_when_the_edge_node_gets_another_address() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            through(
                |cluster| {
                    cluster.node(On::Edge1).change_address(99)?;
                    cluster.shared.publish_node(cluster.node(On::Edge1))
                },
                cluster,
            )
        })
    })
}

#[test]
fn connections_go_on_when_the_edge_node_moves_to_another_site() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            let mobile = cluster.mobile_site()?;
            through(|cluster| cluster.move_to(On::Edge1, &mobile), cluster)
        })
    })
}

#[test]
fn connections_go_on_when_the_nats_public_address_changes() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            through(
                |cluster| {
                    let address = cluster.sites.internet.free_address()?;
                    let uplink = cluster.sites.edge1_site().uplink();
                    uplink.set_public_address(address)
                },
                cluster,
            )
        })
    })
}

#[test]
fn connections_go_on_when_the_nat_forgets_its_mappings() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            through(
                |cluster| cluster.sites.edge1_site().forget_connections(),
                cluster,
            )
        })
    })
}

#[test]
fn relayed_connections_go_on_when_their_only_relay_is_restarted() -> Result<()> {
    in_lab(|lab| {
        play(
            lab,
            Sites::builder().edges_behind(Nat::Symmetric),
            |cluster| {
                cluster.configure(&[On::Cloud1])?;
                cluster.agent_mut(On::Cloud1).stop()?;
                cluster.start(&[On::Cloud1])?;
                let watched = Watched::begin(cluster, On::Edge1, On::Edge2)?;
                cluster.await_way(On::Edge1, On::Edge2, "relayed")?;
                watched.held.forget_stalls();
                let agent = cluster.agent_mut(On::Cloud1);
                agent.stop()?;
                agent.start()?;
                recover_all([watched])
            },
        )
    })
}

#[test]
fn relayed_connections_go_on_when_their_only_relay_is_killed_and_comes_back() -> Result<()> {
    in_lab_within(Duration::from_secs(240), |lab| {
        play(
            lab,
            Sites::builder().edges_behind(Nat::Symmetric),
            |cluster| {
                let watched = Watched::begin(cluster, On::Edge1, On::Edge2)?;
                cluster.await_way(On::Edge1, On::Edge2, "relayed")?;
                watched.held.forget_stalls();
                let relay = relay_between(cluster, On::Edge1, On::Edge2)?;
                let agent = cluster.agent_mut(relay);
                agent.kill()?;
                agent.start()?;
                recover_all([watched])
            },
        )
    })
}

#[test]
fn another_relay_takes_over_from_one_that_is_gone() -> Result<()> {
    in_lab(|lab| {
        play(
            lab,
            Sites::builder().edges_behind(Nat::Symmetric),
            |cluster| {
                let watched = Watched::begin(cluster, On::Edge1, On::Edge2)?;
                cluster.await_way(On::Edge1, On::Edge2, "relayed")?;
                watched.held.forget_stalls();
                let relay = relay_between(cluster, On::Edge1, On::Edge2)?;
                let since = watched.asked.now();
                cluster.agent_mut(relay).stop()?;
                watched.recover(since)?;
                let other = relay_between(cluster, On::Edge1, On::Edge2)?;
                println!("{} was the relay, {} is now", relay.name(), other.name());
                ensure!(other != relay, "the relay that is gone is still in use");
                Ok(())
            },
        )
    })
}

/// Which node relays between two.
fn relay_between(cluster: &Cluster, from: On, to: On) -> Result<On> {
    let by = cluster.status(from)?.by(to);
    let is_relay = |on: &On| by.contains(&cluster.node(*on).ipv4().to_string());
    On::ALL
        .into_iter()
        .find(is_relay)
        .with_context(|| format!("{by:?} is no node's relay"))
}

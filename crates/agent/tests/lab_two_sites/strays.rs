//! Agents speak with each other and with nobody else, whatever goes wrong. (Each of the other
//! scenarios checks that, too.)

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::{Nat, Place, Protocol, Sites, Traffic, await_until};

use crate::cluster::{Cluster, IDENTITY};
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, play, play_from_the_start};

/// Longer than what agents do now and again takes to come round: reports of the network,
/// looks for relays, keep-alives.
const WHILE: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(500);

#[test]
fn agents_with_a_default_route_contact_nobody_outside_the_cluster() -> Result<()> {
    in_lab(|lab| {
        let sites = Sites::builder().behind(Nat::PortPreserving, Nat::NoUdp);
        play(lab, sites, |cluster| {
            has_default_routes(cluster)?;
            let client = cluster.pod(On::Edge1);
            let server = At(On::Edge2, Of::Pod).cluster_ip(IDENTITY);
            let asked = client.keep_asking(Protocol::Tcp, server, PAUSE, LONG)?;
            wait_a_while()?;
            ensure!(asked.stop()?.failed() == 0, "edge2 is not reached");
            Ok(())
        })
    })
}

#[test]
fn an_agent_whose_relays_and_peers_are_gone_does_not_look_elsewhere() -> Result<()> {
    in_lab(|lab| {
        play_from_the_start(lab, Sites::builder(), |cluster| {
            // Its peers' MeshNodes are there, and so are the relays' addresses.
            cluster.start_all()?;
            has_default_routes(cluster)?;
            for on in [On::Cloud1, On::Cloud2, On::Edge2] {
                cluster.agent_mut(on).kill()?;
            }
            cluster.agent_mut(On::Edge1).stop()?;
            cluster.agent_mut(On::Edge1).start()?;
            let client = cluster.pod(On::Edge1);
            let server = At(On::Cloud1, Of::Pod).cluster_ip(IDENTITY);
            let asked = client.keep_asking(Protocol::Tcp, server, PAUSE, LONG)?;
            wait_a_while()?;
            let log = asked.stop()?;
            ensure!(log.answered() == 0 && log.failed() > 0, "{log}");
            Ok(())
        })
    })
}

fn wait_a_while() -> Result<()> {
    let began = Instant::now();
    await_until(WHILE + LONG, "a while is over", || began.elapsed() >= WHILE)?;
    Ok(())
}

/// A stray that has no route would not be seen.
fn has_default_routes(cluster: &Cluster) -> Result<()> {
    for node in cluster.sites.nodes() {
        let routes = node
            .program("ip")
            .args(["route", "show", "default"])
            .run()?;
        ensure!(routes.contains("via"), "{} has none: {routes}", node.name());
    }
    Ok(())
}

//! How soon an edge node that starts is part of the cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgemesh_lab::{
    Lab, Nat, Place, Protocol, Sites, SitesBuilder, StrayKind, Traffic, await_ok, await_until,
};

use crate::cluster::IDENTITY;
use crate::figures::{ms, print_table};
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, play_unchecked};

const EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_millis(500);
/// First with a key to be made, then with the one that is there.
const STARTS: [&str; 3] = ["first", "second", "third"];

#[test]
fn an_edge_node_that_starts_has_its_first_answers_from_other_sites_at_once() -> Result<()> {
    in_lab(|lab| print_three_starts(lab, Sites::builder(), "From the start of edge1's agent"))
}

#[test]
fn an_edge_node_whose_site_lets_no_udp_pass_has_its_first_answers_at_once() -> Result<()> {
    in_lab(|lab| {
        let sites = Sites::builder().edges_behind(Nat::NoUdp);
        print_three_starts(lab, sites, "From the start of edge1's agent, without UDP")
    })
}

fn print_three_starts(lab: &Lab, sites: SitesBuilder, title: &str) -> Result<()> {
    let mut rows = Vec::new();
    play_three_starts(lab, sites, &mut rows)?;
    let head = [
        "start",
        "ready, ms",
        "first answer to it, ms",
        "first answer from it, ms",
    ];
    print_table(title, &head.map(str::to_owned), &rows);
    Ok(())
}

fn play_three_starts(lab: &Lab, sites: SitesBuilder, rows: &mut Vec<Vec<String>>) -> Result<()> {
    play_unchecked(lab, sites, |cluster| {
        cluster.start(&[On::Cloud1, On::Cloud2, On::Edge2])?;
        for start in STARTS {
            let out = At(On::Cloud1, Of::Pod).cluster_ip(IDENTITY);
            let into = At(On::Edge1, Of::Pod).cluster_ip(IDENTITY);
            let began = Instant::now();
            cluster.agent_mut(On::Edge1).start_without_waiting()?;
            let asked_into =
                cluster
                    .pod(On::Cloud2)
                    .keep_asking(Protocol::Tcp, into, EVERY, PATIENCE)?;
            let late = began.elapsed();
            cluster.agent_mut(On::Edge1).await_ready()?;
            let ready = began.elapsed();
            // Before it is ready, what is sent to a ClusterIP leaves the site.
            let client = cluster.pod(On::Edge1);
            let answered = await_ok(LONG, "edge1 has an answer", || {
                client.ask(out, "hello")?;
                Ok(began.elapsed())
            })?;
            await_until(LONG, "edge1 has answered", || {
                asked_into.log().answered() > 0
            })?;
            let first = asked_into.stop()?.first_answer().context("no answer")?;
            rows.push(vec![
                start.to_owned(),
                ms(ready),
                ms(answered),
                ms(first + late),
            ]);
            cluster.agent_mut(On::Edge1).stop()?;
        }
        // A node of which no agent has said anything yet is taken to be reached natively.
        cluster.sites.check_no_strays(&[StrayKind::Private])
    })
}

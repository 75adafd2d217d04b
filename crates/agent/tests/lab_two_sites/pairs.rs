//! Everybody reaches every Service, whatever kind of NAT the edge sites are behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{Nat, Place, Sites};

use crate::cluster::{Cluster, IDENTITY, UDP_IDENTITY};
use crate::figures::{ms, print_table};
use crate::places::{At, Of, On};
use crate::scenario::{in_lab, play};

#[test]
fn all_reach_all_behind_port_preserving_nats_and_all_ways_become_direct() -> Result<()> {
    in_lab(|lab| {
        play(lab, behind(Nat::PortPreserving), |cluster| {
            all_reach_all(cluster, Nat::PortPreserving, |_, _| "direct")
        })
    })
}

#[test]
fn all_reach_all_behind_symmetric_nats_and_edges_meet_at_a_relay() -> Result<()> {
    in_lab(|lab| {
        play(lab, behind(Nat::Symmetric), |cluster| {
            all_reach_all(cluster, Nat::Symmetric, |from, to| {
                if from.is_edge() && to.is_edge() {
                    "relayed"
                } else {
                    "direct"
                }
            })
        })
    })
}

#[test]
fn all_reach_all_where_no_udp_passes() -> Result<()> {
    in_lab(|lab| {
        play(lab, behind(Nat::NoUdp), |cluster| {
            all_reach_all(cluster, Nat::NoUdp, relayed_at_the_edge)
        })
    })
}

#[test]
fn all_reach_all_where_only_tcp_to_the_relays_port_passes() -> Result<()> {
    in_lab(|lab| {
        let nat = Nat::OnlyTcpPort(20006);
        play(lab, behind(nat), |cluster| {
            all_reach_all(cluster, nat, relayed_at_the_edge)
        })
    })
}

#[test]
fn edges_behind_different_nats_reach_each_other() -> Result<()> {
    in_lab(|lab| {
        let sites = Sites::builder().behind(Nat::PortPreserving, Nat::OnlyTcpPort(20006));
        play(lab, sites, |cluster| {
            all_reach_all(cluster, Nat::PortPreserving, |from, to| {
                if from == On::Edge2 || to == On::Edge2 {
                    "relayed"
                } else {
                    "direct"
                }
            })
        })
    })
}

#[test]
fn edges_in_one_lan_reach_each_other_straight() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder().edges_in_one_lan(), |cluster| {
            all_reach_all(cluster, Nat::PortPreserving, |_, _| "direct")?;
            let by = cluster.status(On::Edge1)?.by(On::Edge2);
            let lan = cluster.node(On::Edge2).ipv4().to_string();
            ensure!(!by.contains("203.0.113."), "{by} leads out of the segment");
            println!("between edges of one segment packets go to {by} (its address is {lan})");
            Ok(())
        })
    })
}

fn behind(nat: Nat) -> edgemesh_lab::SitesBuilder {
    Sites::builder().edges_behind(nat)
}

fn relayed_at_the_edge(from: On, to: On) -> &'static str {
    if from.is_edge() || to.is_edge() {
        "relayed"
    } else {
        "direct"
    }
}

/// First contact between all nodes, then the ways that are to be, then every pair.
fn all_reach_all(cluster: &Cluster, nat: Nat, way: impl Fn(On, On) -> &'static str) -> Result<()> {
    let first = first_contacts(cluster)?;
    for (from, to) in pairs() {
        cluster.await_way(from, to, way(from, to))?;
    }
    let taken = every_exchange(cluster)?;
    print_ways(cluster, nat, &first)?;
    print_exchanges(nat, &taken);
    Ok(())
}

/// Ordered pairs of different nodes.
fn pairs() -> impl Iterator<Item = (On, On)> {
    let all = On::ALL.into_iter();
    all.flat_map(|from| On::ALL.into_iter().map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

type Taken<K> = BTreeMap<K, Duration>;

fn first_contacts(cluster: &Cluster) -> Result<Taken<(On, On)>> {
    pairs()
        .map(|(from, to)| {
            let server = At(to, Of::Pod);
            let taken = ask_tcp(
                cluster,
                At(from, Of::Pod),
                server,
                server.cluster_ip(IDENTITY),
            )?;
            Ok(((from, to), taken))
        })
        .collect()
}

/// TCP and UDP by both families' ClusterIPs; what took the longest of each is kept.
fn every_exchange(cluster: &Cluster) -> Result<Taken<(At, At)>> {
    let mut taken = Taken::new();
    for client in At::all() {
        for server in At::all() {
            let tcp = [server.cluster_ip(IDENTITY), server.cluster_ip_v6(IDENTITY)];
            for to in tcp {
                let took = ask_tcp(cluster, client, server, to)?;
                let longest = taken.entry((client, server)).or_default();
                *longest = took.max(*longest);
            }
            for to in [
                server.cluster_ip(UDP_IDENTITY),
                server.cluster_ip_v6(UDP_IDENTITY),
            ] {
                ask_udp(cluster, client, server, to)?;
            }
        }
    }
    Ok(taken)
}

fn ask_tcp(cluster: &Cluster, client: At, server: At, to: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let answer = cluster
        .at(client)
        .ask(to, "hello")
        .with_context(|| format!("TCP from {client} to {server}"))?;
    check_server(client, server, &answer)?;
    Ok(began.elapsed())
}

fn ask_udp(cluster: &Cluster, client: At, server: At, to: SocketAddr) -> Result<()> {
    let answer = cluster
        .at(client)
        .ask_udp(to, "hello")
        .with_context(|| format!("UDP from {client} to {server}"))?;
    check_server(client, server, &answer)
}

fn check_server(client: At, server: At, answer: &edgemesh_lab::Answer) -> Result<()> {
    ensure!(
        answer.server == server.server() && answer.echo == "hello",
        "{client} asked for {server} and {answer:?} came"
    );
    Ok(())
}

fn print_ways(cluster: &Cluster, nat: Nat, first: &Taken<(On, On)>) -> Result<()> {
    let head: Vec<String> = ["from", "to", "first contact, ms", "way", "by"]
        .map(str::to_owned)
        .into();
    let mut rows = Vec::new();
    for ((from, to), took) in first {
        let status = cluster.status(*from)?;
        rows.push(vec![
            from.name().to_owned(),
            to.name().to_owned(),
            ms(*took),
            status.way(*to),
            status.by(*to),
        ]);
    }
    print_table(&format!("Ways, edges behind {nat}"), &head, &rows);
    Ok(())
}

fn print_exchanges(nat: Nat, taken: &Taken<(At, At)>) {
    let head: Vec<String> = std::iter::once("from, to (TCP, ms)".to_owned())
        .chain(At::all().map(|at| at.to_string()))
        .collect();
    let row = |client: At| {
        let cells = At::all().map(|server| {
            taken
                .get(&(client, server))
                .copied()
                .map_or_else(String::new, ms)
        });
        std::iter::once(client.to_string()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = At::all().map(row).collect();
    print_table(&format!("Exchanges, edges behind {nat}"), &head, &rows);
}

//! The tunnel beside plain TCP over long paths that lose packets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgemesh_lab::{LinkConditions, Place, Sites, Traffic};

use crate::cluster::{Cluster, IDENTITY, PATTERN};
use crate::figures::{mbit, ms, print_table};
use crate::places::{At, Here, Of, On};
use crate::scenario::{in_lab_within, play};

const LIMIT: Duration = Duration::from_secs(600);
/// How often both take turns.
const ROUNDS: u64 = 5;
const REQUESTS: usize = 20;

#[test]
#[ignore = "a measurement of minutes, to be made with --release"]
fn the_tunnel_beside_plain_tcp_at_30_ms_and_half_a_percent() -> Result<()> {
    in_lab_within(LIMIT, |lab| {
        let half = LinkConditions::delay(Duration::from_millis(15)).loss(0.005);
        play(lab, Sites::builder().edges_over(half, 1), |cluster| {
            compare(cluster, "30 ms round trip, 0.5 % lost each way", 8 << 20)
        })
    })
}

#[test]
#[ignore = "a measurement of minutes, to be made with --release"]
fn the_tunnel_beside_plain_tcp_at_100_ms_and_two_percent() -> Result<()> {
    in_lab_within(LIMIT, |lab| {
        let half = LinkConditions::delay(Duration::from_millis(50)).loss(0.02);
        play(lab, Sites::builder().edges_over(half, 1), |cluster| {
            compare(cluster, "100 ms round trip, 2 % lost each way", 2 << 20)
        })
    })
}

/// What was seen of one way to the same server.
#[derive(Default)]
struct Seen {
    down: Vec<u64>,
    up: Vec<u64>,
    requests: Vec<Duration>,
}

/// From edge1's host to a server on cloud1's host, by its ClusterIP and by its address.
fn compare(cluster: &Cluster, path: &str, bytes: u64) -> Result<()> {
    let client = cluster.at(At(On::Edge1, Of::Host));
    let server = At(On::Cloud1, Of::Host);
    let plain = |port| SocketAddr::from((cluster.node(On::Cloud1).ipv4(), port));
    let ways = [
        (
            "tunnel",
            server.cluster_ip(PATTERN),
            server.cluster_ip(IDENTITY),
        ),
        ("plain TCP", plain(8090), plain(8080)),
    ];
    client.ask(server.cluster_ip(IDENTITY), "hello")?;
    cluster.await_way(On::Edge1, On::Cloud1, "direct")?;
    let mut seen = [Seen::default(), Seen::default()];
    for round in 0..ROUNDS {
        for ((name, pattern, identity), seen) in ways.iter().zip(&mut seen) {
            measure(&client, (*pattern, *identity), round, bytes, seen)
                .with_context(|| format!("{name}, round {round}"))?;
        }
    }
    let head = [
        "",
        "down, Mbit/s",
        "up, Mbit/s",
        "request p50, ms",
        "p90, ms",
        "longest, ms",
    ];
    let rows: Vec<_> = ways
        .iter()
        .zip(&mut seen)
        .map(|((name, ..), seen)| row(name, seen))
        .collect();
    let title = format!("{path}; {ROUNDS} rounds of {} MiB each way", bytes >> 20);
    print_table(&title, &head.map(str::to_owned), &rows);
    Ok(())
}

fn measure(
    client: &Here,
    (pattern, identity): (SocketAddr, SocketAddr),
    round: u64,
    bytes: u64,
    seen: &mut Seen,
) -> Result<()> {
    seen.down
        .push(client.download(pattern, round, bytes)?.rate());
    seen.up.push(client.upload(pattern, round, bytes)?.rate());
    for _ in 0..REQUESTS {
        let began = Instant::now();
        client.ask(identity, "how long?")?;
        seen.requests.push(began.elapsed());
    }
    Ok(())
}

/// Medians, with the least and the greatest of the throughputs.
fn row(name: &str, seen: &mut Seen) -> Vec<String> {
    let spread = |rates: &mut Vec<u64>| {
        rates.sort_unstable();
        let at = |place: usize| rates.get(place).copied().map(mbit).unwrap_or_default();
        format!(
            "{} ({}..{})",
            at(rates.len() / 2),
            at(0),
            at(rates.len().saturating_sub(1))
        )
    };
    seen.requests.sort_unstable();
    let last = seen.requests.len().saturating_sub(1);
    let request = |place: usize| {
        seen.requests
            .get(place)
            .copied()
            .map(ms)
            .unwrap_or_default()
    };
    vec![
        name.to_owned(),
        spread(&mut seen.down),
        spread(&mut seen.up),
        request(last / 2),
        request(last * 9 / 10),
        request(last),
    ]
}

//! UDP from one site to another keeps what was sent: nothing is merged, cut or answered to the
//! wrong client. What is lost of a burst is counted by agents and kernels, to the last one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::traffic::Burst;
use edgemesh_lab::{Nat, Place, Sites, SitesBuilder, Traffic, await_until};

use crate::cluster::{Cluster, ECHO};
use crate::places::{At, Here, Of, On};
use crate::scenario::{LONG, in_lab_within, play};

const LIMIT: Duration = Duration::from_secs(300);
/// The largest datagram of UDP over IPv4.
const LARGEST: usize = 65_507;
/// The tunnel's port, as files in /proc show it.
const TUNNEL_PORT: &str = "4E26";

/// Straight and relayed, to the cloud and from it.
const ACROSS: [(On, On, &str); 3] = [
    (On::Edge1, On::Cloud1, "direct"),
    (On::Cloud1, On::Edge1, "direct"),
    (On::Edge1, On::Edge2, "relayed"),
];

fn with_a_relay() -> SitesBuilder {
    Sites::builder().edges_behind(Nat::Symmetric)
}

/// Those around what fits into a packet one by one, larger ones here and there.
fn sizes() -> impl Iterator<Item = usize> {
    (0..=1600)
        .chain((1601..LARGEST).step_by(499))
        .chain([LARGEST])
}

#[test]
fn datagrams_of_all_sizes_come_back_whole_from_another_site() -> Result<()> {
    in_lab_within(LIMIT, |lab| {
        play(lab, with_a_relay(), |cluster| {
            for (from, to, way) in ACROSS {
                let (client, server) = settled(cluster, from, to, way)?;
                let report = client.datagrams_of(server, sizes())?;
                println!("{} to {}, {way}: {report}", from.name(), to.name());
                report.check_all_answered()?;
            }
            Ok(())
        })
    })
}

#[test]
fn bursts_of_datagrams_come_back_whole_and_to_their_clients_or_are_counted_as_lost() -> Result<()> {
    in_lab_within(LIMIT, |lab| {
        play(lab, with_a_relay(), |cluster| {
            for (from, to, way) in ACROSS {
                let (client, server) = settled(cluster, from, to, way)?;
                for burst in bursts() {
                    let before = dropped(cluster)?;
                    let report = client.burst(server, burst)?;
                    let lost = report.lost as u64;
                    let counted = || dropped(cluster).map(|now| now - before);
                    // The other side tells of the last ones after some seconds.
                    let settled = await_until(LONG, "what is lost is counted", || {
                        counted().is_ok_and(|counted| counted >= lost)
                    });
                    let counted = counted()?;
                    println!(
                        "{} to {}, {way}, {burst:?}: {report}; {counted} counted as dropped",
                        from.name(),
                        to.name()
                    );
                    settled?;
                    ensure!(counted == lost, "{counted} counted; {report}");
                    report.check_nothing_wrong()?;
                    ensure!(report.answered > 0, "{report}");
                }
            }
            Ok(())
        })
    })
}

/// Small ones, those that just fit into a packet, many clients, large ones. None waits for
/// answers: where many are lost, each wait would last until a datagram counts as lost.
fn bursts() -> [Burst; 4] {
    let burst = |count, size, clients| Burst {
        count,
        size,
        clients,
        window: count,
    };
    [
        burst(1000, 200, 1),
        burst(1000, 1200, 1),
        burst(100, 100, 10),
        burst(100, 9000, 1),
    ]
}

/// Client and server, after the way between them has become what it will be.
fn settled(cluster: &Cluster, from: On, to: On, way: &str) -> Result<(Here, std::net::SocketAddr)> {
    let server = At(to, Of::Pod).cluster_ip(ECHO);
    let client = cluster.pod(from);
    client
        .exchange(server, 1, 1000)
        .context("before the datagrams")?;
    cluster.await_way(from, to, way)?;
    Ok((client, server))
}

/// Datagrams that agents and kernels have dropped so far, and say so.
fn dropped(cluster: &Cluster) -> Result<u64> {
    let mut dropped = 0;
    for on in On::ALL {
        dropped += cluster.metrics(on)?.datagrams_dropped() as u64;
        let server = cluster.member(on).server.namespace();
        let namespaces = [
            cluster.pod(on).0,
            cluster.at(At(on, Of::Host)).0,
            server.clone(),
        ];
        for namespace in namespaces {
            dropped += kernel_drops(&Here(namespace))?;
        }
    }
    Ok(dropped)
}

/// `InErrors` and `SndbufErrors` of UDP in a namespace: what found a socket full. Without the
/// tunnel's own packets: what was in them is counted by the tunnel.
fn kernel_drops(place: &Here) -> Result<u64> {
    let namespace = place.namespace();
    let [figures, sockets] = namespace.run(|| {
        ["snmp", "udp"].map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))
    })?;
    Ok(full_sockets(&figures?)?.saturating_sub(tunnel_drops(&sockets?)?))
}

fn full_sockets(figures: &str) -> Result<u64> {
    let mut lines = figures
        .lines()
        .filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("no figures of UDP")?;
    let figures = names.split(' ').zip(values.split(' '));
    let wanted = figures.filter(|(name, _)| ["InErrors", "SndbufErrors"].contains(name));
    let values = wanted.map(|(_, value)| value.parse::<u64>());
    Ok(values.sum::<Result<_, _>>()?)
}

/// What the last column of /proc/net/udp says of the tunnel's sockets.
fn tunnel_drops(sockets: &str) -> Result<u64> {
    let drops = sockets.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        let (_, port) = columns.nth(1)?.split_once(':')?;
        let drops = columns.next_back()?;
        (port == TUNNEL_PORT).then(|| drops.parse::<u64>())
    });
    Ok(drops.sum::<Result<_, _>>()?)
}

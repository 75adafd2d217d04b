//! UDP through the tunnel: every datagram whole, to the right client, or counted as lost.

mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use edgemesh_catalog::Protocol::Udp;
use edgemesh_tunnel::{DatagramDropped, OpenFault, Tunnel, UdpFlow};
use stage::{Cluster, Member, PATIENCE, endpoint, eventually, run, target};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Largest datagram that IPv4 carries.
const LARGEST: usize = 65_507;

/// An endpoint that sends every datagram back to whom it came from.
struct Echo {
    _task: JoinSet<()>,
}

impl Echo {
    async fn start(at: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(at).await.context("an endpoint")?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..n], from).await;
            }
        });
        Ok(Self { _task: task })
    }
}

async fn two_nodes(cluster: &mut Cluster) -> Result<(Member, Member)> {
    let near = cluster.join("near").await?;
    let far = cluster.join("far").await?;
    cluster.service("dns", Udp, &[(endpoint(1), &far), (endpoint(2), &far)]);
    near.knows(&far).await?;
    Ok((near, far))
}

fn open(tunnel: &Tunnel, far: &Member) -> Result<UdpFlow, OpenFault> {
    tunnel.open_udp(&far.name, target("dns", Udp, endpoint(1)))
}

/// The next answer.
async fn answer(flow: &UdpFlow) -> Result<Bytes> {
    let received = async {
        loop {
            flow.ready().await;
            match flow.try_receive() {
                Some(Ok(datagram)) => return Ok(datagram),
                Some(Err(fault)) => bail!("the flow ended: {fault}"),
                None => {}
            }
        }
    };
    timeout(PATIENCE, received).await.context("no answer")?
}

/// How the flow ended.
async fn end(flow: &UdpFlow) -> Result<OpenFault> {
    let ended = async {
        loop {
            flow.ready().await;
            if let Some(Err(fault)) = flow.try_receive() {
                return fault;
            }
        }
    };
    timeout(PATIENCE, ended).await.context("it does not end")
}

fn datagram(length: usize, tag: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|i| (i as u32 ^ tag) as u8).collect();
    for (byte, of_tag) in bytes.iter_mut().zip(tag.to_be_bytes()) {
        *byte = of_tag;
    }
    bytes
}

#[test]
fn datagrams_of_every_size_come_back_whole() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            for length in [
                0, 1, 2, 511, 1200, 1391, 1392, 1393, 1400, 1414, 1452, 1500, 4096, 4097, 9000,
                65_000, LARGEST,
            ] {
                let sent = datagram(length, 7);
                flow.send(&sent).ok().context("it was dropped")?;
                let received = answer(&flow).await?;
                ensure!(
                    received == sent,
                    "{length} bytes came back as {}",
                    received.len()
                );
            }
            Ok(())
        })
    })
}

#[test]
fn a_datagram_that_ipv4_could_not_carry_is_counted_not_cut() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"x").ok().context("the way")?;
            answer(&flow).await?;
            ensure!(flow.send(&vec![0; LARGEST + 1]).is_err());
            let dropped = near
                .tunnel
                .counters()
                .datagrams_dropped(DatagramDropped::TooLarge);
            ensure!(dropped == 1, "{dropped}");
            Ok(())
        })
    })
}

#[test]
fn a_burst_of_a_thousand_comes_whole_or_is_counted() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let sink = Arc::new(UdpSocket::bind(endpoint(1)).await?);
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"first").ok().context("the way")?;
            let mut buffer = vec![0; 1 << 16];
            timeout(PATIENCE, sink.recv(&mut buffer)).await??;
            let received = Arc::new(AtomicU64::new(0));
            let (receiver, count) = (Arc::clone(&sink), Arc::clone(&received));
            let mut receiving: JoinSet<Result<()>> = JoinSet::new();
            receiving.spawn(async move {
                let mut seen = vec![false; 1000];
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let n = receiver.recv(&mut buffer).await?;
                    let tag: [u8; 4] = buffer[..4].try_into()?;
                    let at = u32::from_be_bytes(tag);
                    ensure!(
                        buffer[..n] == datagram(1000, at),
                        "datagram {at} is not as sent"
                    );
                    ensure!(!std::mem::replace(&mut seen[at as usize], true), "twice");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut refused = 0;
            for at in 0..1000 {
                refused += u64::from(flow.send(&datagram(1000, at)).is_err());
            }
            let counted = || dropped_by(&[&near, &far]);
            let arrived = || {
                // The endpoint's own socket holds two hundred or so until it is read.
                let overflowed = dropped_by_receiver(endpoint(1)).unwrap_or(0);
                received.load(Ordering::Relaxed) + overflowed
            };
            tokio::select! {
                wrong = receiving.join_next() => wrong.context("it was started")???,
                accounted = eventually("all are accounted for", || {
                    arrived() + counted() >= 1000
                }) => accounted?,
            }
            let (arrived, counted) = (arrived(), counted());
            ensure!(refused <= counted);
            ensure!(
                arrived + counted == 1000,
                "{arrived} arrived, {counted} counted by the tunnel"
            );
            ensure!(counted == 0, "the tunnel dropped {counted} of 1000");
            Ok(())
        })
    })
}

#[test]
fn of_very_many_that_are_very_small_all_come_or_are_counted() -> Result<()> {
    const ALL: u64 = 100_000;
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let sink = UdpSocket::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            let received = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&received);
            let mut receiving = JoinSet::new();
            receiving.spawn(async move {
                while sink.recv(&mut [0; 16]).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            flow.send(b"first").ok().context("the way")?;
            eventually("the way", || received.load(Ordering::Relaxed) == 1).await?;
            // Faster than they can go: all that may be full is.
            for _ in 1..ALL {
                let _ = flow.send(b"x");
            }
            let accounted = || {
                let overflowed = dropped_by_receiver(endpoint(1)).unwrap_or(0);
                received.load(Ordering::Relaxed) + overflowed + dropped_by(&[&near, &far])
            };
            eventually("all are accounted for", || accounted() >= ALL).await?;
            ensure!(accounted() == ALL, "{} of {ALL}", accounted());
            Ok(())
        })
    })
}

#[test]
fn two_clients_get_their_own_answers() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flows: Vec<UdpFlow> = (0..50)
                .map(|_| open(&near.tunnel, &far))
                .collect::<Result<_, _>>()?;
            for round in 0..20 {
                for (tag, flow) in flows.iter().enumerate() {
                    let length = 4 + (tag * 97 + round * 331) % 3000;
                    flow.send(&datagram(length, tag as u32))
                        .ok()
                        .context("dropped")?;
                }
                for (tag, flow) in flows.iter().enumerate() {
                    let received = answer(flow).await?;
                    ensure!(
                        received[..4] == (tag as u32).to_be_bytes(),
                        "another's answer"
                    );
                }
            }
            Ok(())
        })
    })
}

#[test]
fn a_refusing_endpoint_ends_the_flow() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"anybody?").ok().context("dropped")?;
            let fault = end(&flow).await?;
            ensure!(fault == OpenFault::Refused, "{fault}");
            Ok(())
        })
    })
}

#[test]
fn a_flow_to_what_is_no_endpoint_ends_with_the_reason() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            let wrong = target("dns", Udp, endpoint(9));
            let flow = near.tunnel.open_udp(&far.name, wrong)?;
            flow.send(b"x").ok().context("dropped")?;
            let fault = end(&flow).await?;
            ensure!(fault == OpenFault::NotAnEndpoint, "{fault}");
            Ok(())
        })
    })
}

#[test]
fn a_flow_that_is_let_go_ends_at_the_exit() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"x").ok().context("dropped")?;
            answer(&flow).await?;
            ensure!(far.tunnel.counters().streams_in() == 1);
            drop(flow);
            eventually("the exit's socket is closed", || {
                far.tunnel.counters().streams_in() == 0
            })
            .await
        })
    })
}

#[test]
fn a_flow_that_falls_silent_ends_at_the_exit() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let near = cluster.join("near").await?;
            let far = cluster
                .join_with("far", |settings| {
                    settings.timing.udp_idle = Duration::from_millis(300);
                })
                .await?;
            cluster.service("dns", Udp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"x").ok().context("dropped")?;
            answer(&flow).await?;
            let fault = end(&flow).await?;
            ensure!(fault == OpenFault::TimedOut, "{fault}");
            Ok(())
        })
    })
}

#[test]
fn large_datagrams_that_came_are_settled_when_their_flow_ends() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            for tag in 0..100 {
                flow.send(&datagram(9000, tag)).ok().context("dropped")?;
                answer(&flow).await?;
            }
            drop(flow);
            eventually("the flow has ended", || {
                far.tunnel.counters().streams_in() == 0
            })
            .await?;
            let counted = dropped_by(&[&near]);
            ensure!(counted == 0, "{counted} of those that came are counted");
            Ok(())
        })
    })
}

#[test]
fn large_datagrams_under_way_to_a_node_that_ends_come_or_are_counted() -> Result<()> {
    const ALL: u64 = 15;
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let sink = UdpSocket::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let flow = open(&near.tunnel, &far)?;
            flow.send(b"first").ok().context("the way")?;
            let mut buffer = vec![0; 1 << 16];
            timeout(PATIENCE, sink.recv(&mut buffer)).await??;
            for tag in 0..ALL {
                flow.send(&datagram(60_000, tag as u32))
                    .ok()
                    .context("dropped")?;
            }
            let overflowed = dropped_by_receiver(endpoint(1))?;
            drop((far.running, far.tunnel));
            drop(flow);
            let arrived = || std::iter::from_fn(|| sink.try_recv(&mut [0; 1 << 16]).ok()).count();
            let mut came = overflowed;
            eventually("all are accounted for", || {
                came += arrived() as u64;
                came + dropped_by(&[&near]) >= ALL
            })
            .await
        })
    })
}

/// What the tunnel has counted at these nodes.
fn dropped_by(members: &[&Member]) -> u64 {
    let counted = members.iter().flat_map(|member| {
        let counters = member.tunnel.counters();
        DatagramDropped::ALL.map(|reason| counters.datagrams_dropped(reason))
    });
    counted.sum()
}

/// What the kernel dropped because the socket at `at` was not read as fast as datagrams came
/// (last column of /proc/net/udp).
fn dropped_by_receiver(at: SocketAddr) -> Result<u64> {
    let SocketAddr::V4(at) = at else {
        bail!("not an IPv4 address: {at}");
    };
    let address = u32::from_ne_bytes(at.ip().octets());
    let local = format!("{address:08X}:{:04X}", at.port());
    let table = std::fs::read_to_string("/proc/net/udp")?;
    let line = table
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(&local))
        .context("the endpoint's socket")?;
    let drops = line.split_whitespace().next_back().context("its drops")?;
    Ok(drops.parse()?)
}

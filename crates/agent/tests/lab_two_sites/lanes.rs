//! What moves much goes by TCP connections between the nodes, and goes on when these are lost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{LinkConditions, Place, Sites, await_ok};

use crate::cluster::{Cluster, ECHO};
use crate::outages::cut_uplinks;
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, play};

/// What has gone by TCP before something happens, and what goes on after it.
const MUCH: u64 = 20_000_000;
/// Bytes after which what is sent repeats itself; no multiple of what any buffer holds.
const PERIOD: usize = 1_000_003;
/// Bytes that wait before the edges' uplinks.
const QUEUE: usize = 1 << 20;
/// Nothing comes for as long as a cut lasts, and TCP pauses as long again after it.
const PATIENCE: Duration = Duration::from_secs(120);

/// So slow that the agents do not take all of the machine.
fn uplinks() -> LinkConditions {
    LinkConditions::delay(Duration::from_millis(2)).rate(200_000_000, QUEUE)
}

#[test]
fn a_transfer_by_tcp_stays_whole_when_the_edge_node_moves_to_another_site() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder().edges_over(uplinks(), 1), |cluster| {
            let mobile = cluster.mobile_site()?;
            // The cloud's node cannot dial the edge's, so it is dialled by that.
            let stream = connect(cluster, On::Cloud1, On::Edge1)?;
            let bytes = whole_while(&stream, |received| {
                await_by_tcp(cluster, On::Cloud1)?;
                cluster.move_to(On::Edge1, &mobile)?;
                await_lost(cluster, On::Cloud1)?;
                await_more(received)
            })?;
            println!("{bytes} bytes each way, before and after the move");
            Ok(())
        })
    })
}

#[test]
fn transfers_by_tcp_stay_whole_and_go_on_after_uplinks_were_cut() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder().edges_over(uplinks(), 1), |cluster| {
            let up = connect(cluster, On::Edge1, On::Cloud1)?;
            let down = connect(cluster, On::Cloud2, On::Edge2)?;
            let bytes = whole_while(&up, |by_up| {
                let bytes = whole_while(&down, |by_down| {
                    for opener in [On::Edge1, On::Cloud2] {
                        await_by_tcp(cluster, opener)?;
                    }
                    cut_uplinks(cluster)?;
                    await_more(by_up)?;
                    await_more(by_down)
                })?;
                println!("{bytes} bytes from cloud2 and back, before and after the cut");
                Ok(())
            })?;
            println!("{bytes} bytes from edge1 and back, before and after the cut");
            Ok(())
        })
    })
}

fn connect(cluster: &Cluster, from: On, to: On) -> Result<TcpStream> {
    let server = At(to, Of::Pod).cluster_ip(ECHO);
    let connected = cluster.pod(from).connect(server);
    connected.with_context(|| format!("{} to {}", from.name(), to.name()))
}

fn await_by_tcp(cluster: &Cluster, opener: On) -> Result<()> {
    await_counted(cluster, opener, "edgemesh_tunnel_tcp_bytes", MUCH)
}

fn await_lost(cluster: &Cluster, opener: On) -> Result<()> {
    await_counted(cluster, opener, "edgemesh_tunnel_tcp_connections_lost", 1)
}

/// Waits until the agent of a node counts at least so much.
fn await_counted(cluster: &Cluster, on: On, name: &str, least: u64) -> Result<()> {
    await_ok(LONG, &format!("{name} of {} is {least}", on.name()), || {
        let counted = cluster.metrics(on)?.sum(name);
        ensure!(counted >= least as f64, "it is {counted}");
        Ok(())
    })
}

/// Waits until much more than now has come back.
fn await_more(received: &AtomicU64) -> Result<()> {
    let enough = received.load(Ordering::Relaxed) + MUCH;
    await_ok(PATIENCE, "the transfer goes on", || {
        let received = received.load(Ordering::Relaxed);
        ensure!(received >= enough, "{received} of {enough} bytes came");
        Ok(())
    })
}

/// Sends as fast as it goes while something `happens`, which is told how much has come back,
/// and a little longer, and checks that all of it comes back. Returns how many bytes did.
fn whole_while(stream: &TcpStream, happens: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<u64> {
    for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        limit(stream, Some(PATIENCE))?;
    }
    let period: Vec<u8> = (0..PERIOD).map(|at| ((at * at) >> 5) as u8).collect();
    let (is_over, received) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let named = thread::Builder::new;
        let sender = named().spawn_scoped(scope, || send_until(&is_over, stream, &period))?;
        let checker = named().spawn_scoped(scope, || check_all(stream, &period, &received))?;
        let happened = happens(&received);
        is_over.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let checked = checker.join();
        checked.map_err(|_| anyhow!("the receiver panicked"))??;
        happened?;
        let (sent, received) = (
            sent.context("while sending")?,
            received.load(Ordering::Relaxed),
        );
        ensure!(sent == received, "{received} of {sent} bytes came back");
        Ok(received)
    })
}

/// Sends `period` over and over; ends it when it is over.
fn send_until(is_over: &AtomicBool, mut stream: &TcpStream, period: &[u8]) -> Result<u64> {
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        stream.write_all(period)?;
        sent += period.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Reads to the end, looks at each byte, and counts them.
fn check_all(mut stream: &TcpStream, period: &[u8], received: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let most = buffer.len().min(period.len() - at);
        let before = received.load(Ordering::Relaxed);
        match stream.read(&mut buffer[..most]) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let right = buffer[..count] == period[at..at + count];
                ensure!(right, "a wrong byte after {before}");
                received.store(before + count as u64, Ordering::Relaxed);
                at = (at + count) % period.len();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("after {before} bytes")),
        }
    }
}

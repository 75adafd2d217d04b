//! What moves much goes by TCP connections between the nodes, and goes on when these are lost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{LinkConditions, Place, Sites, await_ok};

use crate::cluster::{Cluster, ECHO};
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, play_from_the_start};

/// What has gone by TCP before something happens.
const MUCH: f64 = 20e6;
/// Bytes after which what is sent repeats itself; no multiple of what any buffer holds.
const PERIOD: usize = 1_000_003;
/// Bytes that wait before the edges' uplinks.
const QUEUE: usize = 1 << 20;

/// So slow that the agents do not take all of the machine.
fn uplinks() -> LinkConditions {
    LinkConditions::delay(Duration::from_millis(2)).rate(200_000_000, QUEUE)
}

#[test]
fn a_transfer_by_tcp_stays_whole_when_the_edge_node_moves_to_another_site() -> Result<()> {
    in_lab(|lab| {
        play_from_the_start(lab, Sites::builder().edges_over(uplinks(), 1), |cluster| {
            cluster.configure_also("    tcpCarrier: auto\n")?;
            cluster.start_all()?;
            let mobile = cluster.mobile_site()?;
            // The cloud's node cannot dial the edge's, so it is dialled by that.
            let to = At(On::Edge1, Of::Pod).cluster_ip(ECHO);
            let stream = cluster.pod(On::Cloud1).connect(to)?;
            let bytes = whole_while(&stream, || {
                await_counted(cluster, "edgemesh_tunnel_tcp_bytes", MUCH)?;
                cluster.move_to(On::Edge1, &mobile)?;
                await_counted(cluster, "edgemesh_tunnel_tcp_connections_lost", 1.0)
            })?;
            println!("{bytes} bytes each way, before and after the move");
            Ok(())
        })
    })
}

/// Waits until cloud1 counts at least so much.
fn await_counted(cluster: &Cluster, name: &str, least: f64) -> Result<()> {
    await_ok(LONG, &format!("{name} is {least}"), || {
        let counted = cluster.metrics(On::Cloud1)?.sum(name);
        ensure!(counted >= least, "it is {counted}");
        Ok(())
    })
}

/// Sends as fast as it goes while something `happens`, and a little longer, and checks that
/// all of it comes back. Returns how many bytes did.
fn whole_while(stream: &TcpStream, happens: impl FnOnce() -> Result<()>) -> Result<u64> {
    for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        limit(stream, Some(LONG * 2))?;
    }
    let period: Vec<u8> = (0..PERIOD).map(|at| ((at * at) >> 5) as u8).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let named = thread::Builder::new;
        let sender = named().spawn_scoped(scope, || send_until(&is_over, stream, &period))?;
        let receiver = named().spawn_scoped(scope, || check_all(stream, &period))?;
        let happened = happens();
        is_over.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let received = receiver.join();
        let received = received.map_err(|_| anyhow!("the receiver panicked"))?;
        happened?;
        let (sent, received) = (sent.context("while sending")?, received?);
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

/// Reads to the end, and looks at each byte.
fn check_all(mut stream: &TcpStream, period: &[u8]) -> Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let (mut received, mut at) = (0, 0);
    loop {
        let most = buffer.len().min(period.len() - at);
        match stream.read(&mut buffer[..most]) {
            Ok(0) => return Ok(received),
            Ok(count) => {
                let right = buffer[..count] == period[at..at + count];
                ensure!(right, "a wrong byte after {received}");
                received += count as u64;
                at = (at + count) % period.len();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("after {received} bytes")),
        }
    }
}

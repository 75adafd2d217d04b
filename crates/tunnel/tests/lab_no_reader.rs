//! Connections whose readers do not read: they may stand, but they must not harm the others
//! between the same two nodes, however much or little is written at a time.

mod stage;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol::Tcp;
use edgemesh_lab::Program;
use edgemesh_tunnel::Settings;
use futures_util::future::try_join_all;
use stage::tcp::{Carried, open, pattern, two_nodes};
use stage::{Member, PATIENCE, endpoint, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Bytes of one write: a line of a log, a keystroke with its terminal's answer.
const LINE: usize = 200;
/// Between two writes, so that each goes as a packet of its own.
const PAUSE: Duration = Duration::from_micros(300);
/// A writer is held up when it may not write for so long.
const HELD_UP: Duration = Duration::from_secs(2);
/// More lines than the transport can keep as pieces (2048), with what sockets take.
const LINES: usize = 3500;

/// Clients that have paused; each has its stream's window waiting for it.
const PAUSED: usize = 40;
/// Bytes of a stream that may wait for its reader.
const STREAM_WINDOW: usize = 1_150_000;
/// A way on which nothing moves for so long is full.
const FULL: Duration = Duration::from_millis(500);

/// All goes by QUIC.
fn without_lanes(settings: &mut Settings) {
    settings.tcp_carrier = false;
}

/// Sockets that take little, so that what is not read waits in the tunnel.
fn small_sockets() -> Result<()> {
    for buffer in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        Program::new("sysctl")
            .args(["-q", "-w", &format!("{buffer}=4096 8192 8192")])
            .run()?;
    }
    Ok(())
}

/// Writes lines until the way is full, or there are no more; returns what was written.
async fn write_lines(writer: &mut TcpStream, all: &[u8]) -> Result<usize> {
    writer.set_nodelay(true)?;
    let mut written = 0;
    for line in all.chunks(LINE) {
        let mut rest = line;
        while !rest.is_empty() {
            let Ok(wrote) = timeout(HELD_UP, writer.write(rest)).await else {
                return Ok(written);
            };
            let wrote = wrote.context("write a line")?;
            written += wrote;
            rest = &rest[wrote..];
        }
        sleep(PAUSE).await;
    }
    Ok(written)
}

/// Writes until nothing more fits into the way.
async fn write_until_full(writer: &mut TcpStream, mut rest: &[u8]) -> Result<()> {
    while let Ok(wrote) = timeout(FULL, writer.write(rest)).await {
        rest = &rest[wrote.context("write an answer")?..];
    }
    Ok(())
}

/// A connection between the two nodes, and its endpoint's side.
async fn connected(
    near: &Member,
    far: &Member,
    listener: &TcpListener,
) -> Result<(Carried, TcpStream)> {
    let carried = Carried::over(open(&near.tunnel, far).await?).await?;
    let (server, _) = timeout(PATIENCE, listener.accept()).await??;
    Ok((carried, server))
}

#[test]
fn many_small_writes_that_nobody_reads_harm_no_other_connection() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            small_sockets()?;
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            for into_tunnel in [true, false] {
                let (mut carried, mut server) = connected(&near, &far, &listener).await?;
                let (mut idle, mut idle_server) = connected(&near, &far, &listener).await?;
                let (writer, reader) = match into_tunnel {
                    true => (&mut carried.client, &mut server),
                    false => (&mut server, &mut carried.client),
                };
                let all = pattern(LINES * LINE, 1);
                let written = write_lines(writer, &all).await?;
                // The other connection is as it was.
                idle.client.write_all(b"still here").await?;
                let mut heard = [0; 10];
                timeout(PATIENCE, idle_server.read_exact(&mut heard)).await??;
                ensure!(&heard == b"still here");
                // And of what stood nothing is lost.
                writer.shutdown().await?;
                let mut read = Vec::new();
                timeout(PATIENCE, reader.read_to_end(&mut read)).await??;
                ensure!(read == all[..written], "{} of {written} bytes", read.len());
                drop((idle.client, idle_server));
            }
            Ok(())
        })
    })
}

#[test]
fn large_answers_that_nobody_reads_harm_no_other_connection() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            small_sockets()?;
            let listener = TcpListener::bind(endpoint(1)).await?;
            let near = cluster.join_with("near", without_lanes).await?;
            let far = cluster.join_with("far", without_lanes).await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            let (mut other, mut other_server) = connected(&near, &far, &listener).await?;
            let answer = pattern(2 * STREAM_WINDOW, 1);
            let mut standing = Vec::new();
            for _ in 0..PAUSED {
                standing.push(connected(&near, &far, &listener).await?);
            }
            let servers = standing.iter_mut().map(|(_, server)| server);
            try_join_all(servers.map(|server| write_until_full(server, &answer))).await?;
            for _ in 0..3 {
                other_server.write_all(b"still here").await?;
                let mut heard = [0; 10];
                let heard_it = timeout(PATIENCE, other.client.read_exact(&mut heard)).await;
                heard_it.context("no other connection gets a byte")??;
            }
            Ok(())
        })
    })
}

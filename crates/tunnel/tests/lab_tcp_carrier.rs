//! Streams that move much, by TCP connections of their own: the same bytes, ends and resets as
//! by QUIC, whatever becomes of those connections.

mod stage;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::{Change, Protocol::Tcp};
use edgemesh_lab::Program;
use edgemesh_sockets::ResetOnDrop;
use edgemesh_tunnel::{Broken, Counters, movable};
use stage::tcp::{
    Carried, Client, Echo, exchange, open, open_files, pattern, send_and_hear, two_nodes,
};
use stage::{Cluster, Member, PATIENCE, endpoint, eventually, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const MIB: usize = 1 << 20;

/// A client's connection whose bytes go by a lane already, and its endpoint.
async fn on_a_lane(near: &Member, far: &Member) -> Result<(Carried, TcpStream)> {
    let listener = TcpListener::bind(endpoint(1)).await?;
    let mut carried = Carried::over(open(&near.tunnel, far).await?).await?;
    let (mut server, _) = listener.accept().await?;
    let (near, far) = (near.tunnel.counters(), far.tunnel.counters());
    let has_lane = || near.lanes() == 1 && far.lanes() == 1 && near.lane_bytes() > 0;
    let mut rounds = 0;
    while !has_lane() {
        move_some(&mut carried.client, &mut server, 64 * 1024).await?;
        rounds += 1;
        ensure!(rounds < 100_000, "no lane after {rounds} rounds");
    }
    Ok((carried, server))
}

/// Moves bytes from one end to the other and looks at each.
async fn move_some(from: &mut TcpStream, to: &mut TcpStream, count: usize) -> Result<()> {
    let sent = pattern(count, 7);
    let mut received = vec![0; count];
    let moved = async { tokio::try_join!(from.write_all(&sent), to.read_exact(&mut received)) };
    timeout(PATIENCE, moved).await.context("nothing moves")??;
    ensure!(received == sent, "other bytes than were sent");
    Ok(())
}

/// What TCP between the nodes meets from now on.
fn block(rule: &[&str]) -> Result<()> {
    let args = ["-I", "INPUT", "-p", "tcp", "-s", "10.1.200.0/24"];
    Program::new("iptables-nft")
        .args(args.iter().chain(rule))
        .run()?;
    Ok(())
}

fn unblock() -> Result<()> {
    Program::new("iptables-nft").args(["-F", "INPUT"]).run()?;
    Ok(())
}

/// All that was moved went by lanes, but for what came before.
fn mostly_by_lane(counters: &Counters, moved: usize) -> Result<()> {
    let by_lane = counters.lane_bytes();
    ensure!(
        by_lane > moved as u64 * 8 / 10,
        "{by_lane} of {moved} by lane"
    );
    Ok(())
}

#[test]
fn what_moves_much_goes_by_a_lane_both_ways_with_its_half_close() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let (request, answer) = (pattern(100 * MIB, 1), pattern(100 * MIB, 2));
            let serve = async {
                let (mut stream, _) = listener.accept().await?;
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                stream.write_all(&answer).await?;
                anyhow::Ok(request)
            };
            let (first, rest) = request.split_at(3000);
            let client = Client::that_said(first).await?;
            let opened = client.open(&near.tunnel, &far, endpoint(1)).await?;
            let carried = Carried::of(client, opened);
            let (served, received) = tokio::join!(serve, send_and_hear(carried, rest));
            ensure!(served? == request, "the request is not what was sent");
            ensure!(received? == answer, "the answer is not what was sent");
            for counters in [near.tunnel.counters(), far.tunnel.counters()] {
                mostly_by_lane(&counters, request.len() + answer.len())?;
                ensure!(counters.lanes_lost() == 0, "a lane was lost");
                ensure!(counters.lanes_made() == 1, "{}", counters.lanes_made());
            }
            Ok(())
        })
    })
}

#[test]
fn what_goes_by_a_lane_is_carried_apart_from_the_connections_between_nodes() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let stream = open(&near.tunnel, &far).await?;
            let Client {
                mut client,
                near: socket,
                ..
            } = Client::silent().await?;
            let (tell, threads) = watch::channel((false, false));
            let mut carrying = JoinSet::new();
            let carried = async move {
                let note = |_, _| {
                    let on_its_own = thread::current().name() == Some("edgemesh-tunnel");
                    tell.send_modify(|(there, apart)| {
                        *there |= on_its_own;
                        *apart |= !on_its_own;
                    });
                };
                // It is reset at the end of the test.
                let _ = stream.carry(ResetOnDrop::new(socket), note).await;
            };
            carrying.spawn_on(movable(carried), near.tunnel.runtime());
            let (mut server, _) = listener.accept().await?;
            let mut rounds = 0;
            while !threads.borrow().1 {
                move_some(&mut client, &mut server, 64 * 1024).await?;
                rounds += 1;
                ensure!(rounds < 100_000, "still there after {rounds} rounds");
            }
            ensure!(threads.borrow().0, "it has not begun there");
            let counters = near.tunnel.counters();
            eventually("its lane", || counters.lanes() == 1).await
        })
    })
}

#[test]
fn what_moves_little_gets_no_lane() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            for _ in 0..20 {
                exchange(&near.tunnel, &far, &pattern(MIB / 4, 1)).await?;
            }
            ensure!(near.tunnel.counters().lanes_made() == 0);
            ensure!(near.tunnel.counters().lanes_failed() == 0);
            Ok(())
        })
    })
}

#[test]
fn a_switched_off_carrier_makes_no_lanes_at_either_end() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let near = cluster.join("near").await?;
            let far = cluster
                .join_with("far", |settings| settings.tcp_carrier = false)
                .await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            let sent = pattern(20 * MIB, 3);
            ensure!(exchange(&near.tunnel, &far, &sent).await? == sent);
            ensure!(near.tunnel.counters().lanes_made() == 0);
            ensure!(far.tunnel.counters().offences() == 0);
            let dialled = TcpStream::connect(far.mesh_node.addresses[0]).await;
            ensure!(dialled.is_err(), "it listens although it is off");
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_in_both_directions_while_bytes_go_by_a_lane() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            for by_client in [true, false] {
                let (carried, server) = on_a_lane(&near, &far).await?;
                let (ending, mut other) = if by_client {
                    (carried.client, server)
                } else {
                    (server, carried.client)
                };
                drop(ResetOnDrop::new(ending));
                let error = timeout(PATIENCE, other.read(&mut [0])).await?;
                let kind = error.map_err(|error| error.kind());
                ensure!(kind == Err(ErrorKind::ConnectionReset), "{kind:?}");
                eventually("the lane goes with its stream", || {
                    near.tunnel.counters().lanes() == 0 && far.tunnel.counters().lanes() == 0
                })
                .await?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_can_be_reset() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            let (mut carried, server) = on_a_lane(&near, &far).await?;
            let chunk = pattern(MIB, 5);
            let mut written = 0;
            // Until nothing more fits into the way to the client, which does not read.
            while timeout(Duration::from_millis(500), server.writable())
                .await
                .is_ok()
            {
                written += server.try_write(&chunk).unwrap_or(0);
            }
            ensure!(written < 64 * MIB, "{written} bytes for nobody");
            // What was written is all there, in order, once it is read.
            let mut received = 0;
            let mut buffer = vec![0; MIB];
            while received < written / 2 {
                let read = timeout(PATIENCE, carried.client.read(&mut buffer)).await??;
                ensure!(read > 0, "it ended");
                received += read;
            }
            drop(ResetOnDrop::new(server));
            let broken = carried.ended().await?;
            ensure!(matches!(broken, Err(Broken::Tunnel(_))), "{broken:?}");
            Ok(())
        })
    })
}

#[test]
fn a_lane_that_is_reset_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            lose_lanes(cluster, &["-j", "REJECT", "--reject-with", "tcp-reset"]).await
        })
    })
}

#[test]
fn a_lane_that_falls_silent_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| run(async |cluster| lose_lanes(cluster, &["-j", "DROP"]).await))
}

/// Both directions are under way when TCP between the nodes meets `rule`.
async fn lose_lanes(cluster: &mut Cluster, rule: &[&str]) -> Result<()> {
    whole_while(cluster, async |near| {
        block(rule)?;
        eventually("the lane is lost", || near.lanes_lost() == 1).await
    })
    .await?;
    unblock()
}

#[test]
fn an_uplink_that_is_away_for_three_seconds_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            whole_while(cluster, async |_| {
                cut()?;
                sleep(AWAY).await;
                unblock()
            })
            .await
        })
    })
}

#[test]
fn an_uplink_that_comes_back_without_tcp_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            whole_while(cluster, async |near| {
                block(&["-j", "DROP"])?;
                cut()?;
                sleep(AWAY).await;
                restore()?;
                eventually("the stream goes on", || near.resumed() == 1).await?;
                eventually("the lane is lost", || near.lanes_lost() == 1).await
            })
            .await?;
            unblock()
        })
    })
}

/// How long an uplink is away.
const AWAY: Duration = Duration::from_secs(3);
/// Bytes after which what is sent repeats itself; no multiple of what any buffer holds.
const PERIOD: usize = 1_000_003;

/// From now on nothing passes between the nodes.
fn cut() -> Result<()> {
    Program::new("iptables-nft")
        .args(["-I", "INPUT", "-s", "10.1.200.0/24", "-j", "DROP"])
        .run()?;
    Ok(())
}

/// What [`cut`] did is over; other rules stay.
fn restore() -> Result<()> {
    Program::new("iptables-nft")
        .args(["-D", "INPUT", "-s", "10.1.200.0/24", "-j", "DROP"])
        .run()?;
    Ok(())
}

/// As many bytes as go through are under way in both directions of a stream, by a lane at
/// first, while something `happens`, and a little longer; all arrive. What happens is told what
/// the node counts that has opened the stream.
async fn whole_while(
    cluster: &mut Cluster,
    happens: impl AsyncFnOnce(&Counters) -> Result<()>,
) -> Result<()> {
    let (near, far) = two_nodes(cluster).await?;
    let (mut carried, mut server) = on_a_lane(&near, &far).await?;
    let counters = near.tunnel.counters();
    let moved_by_then = counters.lane_bytes() + 40 * MIB as u64;
    let is_over = AtomicBool::new(false);
    let (client_reader, client_writer) = carried.client.split();
    let (server_reader, server_writer) = server.split();
    let happening = async {
        eventually("bytes go by the lane", || {
            counters.lane_bytes() > moved_by_then
        })
        .await?;
        happens(&counters).await?;
        is_over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let ((), sent_up, sent_down, up, down) = tokio::try_join!(
        happening,
        send_until(&is_over, client_writer, 11),
        send_until(&is_over, server_writer, 12),
        check_all(server_reader, 11),
        check_all(client_reader, 12),
    )?;
    ensure!(up == sent_up, "{up} of {sent_up} bytes came up");
    ensure!(down == sent_down, "{down} of {sent_down} bytes came down");
    let ended = carried.ended().await?;
    ensure!(ended.is_ok(), "{ended:?}");
    Ok(())
}

/// Sends until it is over, and ends the stream; tells how much that was.
async fn send_until(is_over: &AtomicBool, mut to: WriteHalf<'_>, seed: u64) -> Result<usize> {
    let period = pattern(PERIOD, seed);
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        to.write_all(&period).await?;
        sent += period.len();
    }
    to.shutdown().await?;
    Ok(sent)
}

/// Reads to the end, looks at each byte, and tells how many came.
async fn check_all(mut from: ReadHalf<'_>, seed: u64) -> Result<usize> {
    let period = pattern(PERIOD, seed);
    let mut buffer = vec![0; MIB];
    let mut received = 0;
    loop {
        let at = received % period.len();
        let most = buffer.len().min(period.len() - at);
        let count = from.read(&mut buffer[..most]).await?;
        if count == 0 {
            return Ok(received);
        }
        let right = buffer[..count] == period[at..at + count];
        ensure!(right, "lost, doubled or changed after {received} bytes");
        received += count;
    }
}

#[test]
fn the_exit_dials_where_what_the_opener_sends_is_dropped() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            block(&["--syn", "-d", &far.address(), "-j", "DROP"])?;
            let (mut carried, mut server) = on_a_lane(&near, &far).await?;
            let counters = near.tunnel.counters();
            let before = counters.lane_bytes();
            for _ in 0..4 {
                move_some(&mut carried.client, &mut server, MIB).await?;
                move_some(&mut server, &mut carried.client, MIB).await?;
            }
            let by_lane = counters.lane_bytes() - before;
            ensure!(by_lane == 8 * MIB as u64, "{by_lane} bytes by the lane");
            ensure!(counters.lanes_failed() == 1, "{}", counters.lanes_failed());
            ensure!(counters.lanes_lost() == 0);
            Ok(())
        })
    })
}

/// Exchanges until some of it went by a lane.
async fn eventually_by_lane(near: &Member, far: &Member, sent: &[u8]) -> Result<()> {
    while near.tunnel.counters().lanes_made() == 0 {
        ensure!(exchange(&near.tunnel, far, &sent[..20 * MIB]).await? == sent[..20 * MIB]);
    }
    Ok(())
}

#[test]
fn where_neither_can_dial_all_goes_by_quic() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            block(&["-j", "REJECT"])?;
            let sent = pattern(50 * MIB, 3);
            ensure!(exchange(&near.tunnel, &far, &sent).await? == sent);
            let counters = near.tunnel.counters();
            ensure!(counters.lanes_made() == 0);
            ensure!(counters.lanes_failed() == 2, "{}", counters.lanes_failed());
            ensure!(exchange(&near.tunnel, &far, &sent).await? == sent);
            ensure!(counters.lanes_failed() == 2, "it is tried again at once");
            Ok(())
        })
    })
}

#[test]
fn a_lane_that_nobody_uses_is_given_up_and_another_is_made_when_it_is_wanted() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            let (mut carried, mut server) = on_a_lane(&near, &far).await?;
            let counters = near.tunnel.counters();
            eventually("it is given up", || {
                counters.lanes() == 0 && far.tunnel.counters().lanes() == 0
            })
            .await?;
            ensure!(counters.lanes_lost() == 0);
            while counters.lanes_made() < 2 {
                move_some(&mut carried.client, &mut server, 64 * 1024).await?;
                move_some(&mut server, &mut carried.client, 64 * 1024).await?;
            }
            carried.client.shutdown().await?;
            ensure!(server.read(&mut [0]).await? == 0);
            drop(server);
            let ended = carried.ended().await?;
            ensure!(ended.is_ok(), "{ended:?}");
            Ok(())
        })
    })
}

#[test]
fn a_peer_that_is_one_no_more_loses_what_went_by_lanes() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (near, far) = two_nodes(cluster).await?;
            let (mut carried, _server) = on_a_lane(&near, &far).await?;
            cluster.apply(Change::NodeGone(near.name.clone()));
            let cut = carried.ended().await?;
            ensure!(matches!(cut, Err(Broken::Tunnel(_))), "{cut:?}");
            eventually("the lane is gone", || {
                near.tunnel.counters().lanes() == 0 && far.tunnel.counters().lanes() == 0
            })
            .await
        })
    })
}

#[test]
fn a_dozen_that_move_much_at_once_each_get_their_own_bytes() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let far = Arc::new(far);
            exchange(&near.tunnel, &far, b"warm").await?;
            let files = open_files()?;
            let mut exchanges = JoinSet::new();
            for seed in 0..12 {
                let (tunnel, far) = (near.tunnel.clone(), Arc::clone(&far));
                exchanges.spawn(async move {
                    let sent = pattern(8 * MIB, seed);
                    let received = exchange(&tunnel, &far, &sent).await?;
                    ensure!(received == sent, "connection {seed} got other bytes");
                    Ok(())
                });
            }
            while let Some(exchanged) = exchanges.join_next().await {
                exchanged??;
            }
            let counters = near.tunnel.counters();
            ensure!(counters.lanes_made() > 3, "{}", counters.lanes_made());
            eventually("nothing is left", || {
                counters.lanes() == 0
                    && far.tunnel.counters().lanes() == 0
                    && open_files().is_ok_and(|left| left <= files)
            })
            .await
        })
    })
}

#[test]
fn strangers_at_the_listener_get_nothing_and_keep_nobody_out() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let at = far.mesh_node.addresses[0];
            // Nodes may know each other before a port is open.
            eventually("it listens", || std::net::TcpStream::connect(at).is_ok()).await?;
            // As many as one address may have at a time, and more; none says a word.
            let mut silent = Vec::new();
            for _ in 0..100 {
                silent.push(dial_from([10, 1, 201, 1].into(), at).await?);
            }
            let mut talker = dial_from([10, 1, 201, 2].into(), at).await?;
            talker.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
            let mut heard = Vec::new();
            let _ = timeout(PATIENCE, talker.read_to_end(&mut heard)).await?;
            ensure!(heard.len() <= 7, "{heard:?}");
            let sent = pattern(40 * MIB, 3);
            eventually_by_lane(&near, &far, &sent).await?;
            for mut stream in silent {
                let mut heard = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut heard)).await?;
                ensure!(heard.is_empty(), "{heard:?}");
            }
            ensure!(far.tunnel.counters().handshakes_refused() >= 60);
            Ok(())
        })
    })
}

async fn dial_from(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    Ok(socket.connect(to).await?)
}

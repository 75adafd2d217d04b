//! Streams that move much, by TCP connections of their own: the same bytes, ends and resets as
//! by QUIC, whatever becomes of those connections.

mod stage;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::{Change, Protocol::Tcp};
use edgemesh_lab::Program;
use edgemesh_sockets::ResetOnDrop;
use edgemesh_tunnel::{Broken, Counters};
use stage::tcp::{Carried, Echo, exchange, open, open_files, pattern, two_nodes};
use stage::{Cluster, Member, PATIENCE, endpoint, eventually, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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
            let (served, received) = tokio::join!(serve, exchange(&near.tunnel, &far, &request));
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
    let counters = whole_through(cluster, 150 * MIB, async || block(rule)).await?;
    ensure!(counters.lanes_lost() == 1, "{}", counters.lanes_lost());
    unblock()
}

#[test]
fn an_uplink_that_is_away_for_three_seconds_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            whole_through(cluster, 60 * MIB, async || {
                cut()?;
                sleep(AWAY).await;
                unblock()
            })
            .await?;
            Ok(())
        })
    })
}

#[test]
fn an_uplink_that_comes_back_without_tcp_costs_no_byte_in_either_direction() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let counters = whole_through(cluster, 60 * MIB, async || {
                cut()?;
                sleep(AWAY).await;
                block(&["-j", "DROP"])?;
                Program::new("iptables-nft")
                    .args(["-D", "INPUT", "2"])
                    .run()?;
                Ok(())
            })
            .await?;
            ensure!(counters.lanes_lost() == 1, "{}", counters.lanes_lost());
            unblock()
        })
    })
}

/// How long an uplink is away.
const AWAY: Duration = Duration::from_secs(3);

/// From now on nothing passes between the nodes.
fn cut() -> Result<()> {
    Program::new("iptables-nft")
        .args(["-I", "INPUT", "-s", "10.1.200.0/24", "-j", "DROP"])
        .run()?;
    Ok(())
}

/// Both directions, of `count` bytes each, are under way by a lane when something `happens`,
/// and arrive whole. Returns what the node counts that has opened the stream.
async fn whole_through(
    cluster: &mut Cluster,
    count: usize,
    happens: impl AsyncFnOnce() -> Result<()>,
) -> Result<Arc<Counters>> {
    let (near, far) = two_nodes(cluster).await?;
    let (mut carried, mut server) = on_a_lane(&near, &far).await?;
    let (up, down) = (pattern(count, 11), pattern(count, 12));
    let (mut client_reader, mut client_writer) = carried.client.split();
    let (mut server_reader, mut server_writer) = server.split();
    let (mut received_up, mut received_down) = (Vec::new(), Vec::new());
    let counters = near.tunnel.counters();
    let moved_by_then = counters.lane_bytes() + count as u64 / 4;
    let happening = async {
        eventually("bytes go by the lane", || {
            counters.lane_bytes() > moved_by_then
        })
        .await?;
        happens().await
    };
    let send_up = async {
        client_writer.write_all(&up).await?;
        client_writer.shutdown().await?;
        anyhow::Ok(())
    };
    let send_down = async {
        server_writer.write_all(&down).await?;
        server_writer.shutdown().await?;
        anyhow::Ok(())
    };
    let read_up = async { anyhow::Ok(server_reader.read_to_end(&mut received_up).await?) };
    let read_down = async { anyhow::Ok(client_reader.read_to_end(&mut received_down).await?) };
    tokio::try_join!(happening, send_up, send_down, read_up, read_down)?;
    ensure!(received_up == up, "the way up lost or doubled something");
    ensure!(
        received_down == down,
        "the way down lost or doubled something"
    );
    let ended = carried.ended().await?;
    ensure!(ended.is_ok(), "{ended:?}");
    Ok(counters)
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

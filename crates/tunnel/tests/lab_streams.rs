//! TCP through the tunnel: what a client on one node and an endpoint on another see of it.

mod stage;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::{Change, ObjectName, Protocol::Tcp};
use edgemesh_sockets::ResetOnDrop;
use edgemesh_tunnel::{Broken, FirstBytes, OpenFault};
use edgemesh_wire::Answer;
use stage::tcp::{Carried, Echo, exchange, exchange_at_once, open, open_files, pattern, two_nodes};
use stage::{PATIENCE, endpoint, eventually, run, target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

#[test]
fn an_endpoint_of_another_node_is_reached() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            ensure!(exchange(&near.tunnel, &far, b"hello").await? == b"hello");
            ensure!(near.tunnel.counters().opened() == 1);
            ensure!(far.tunnel.counters().answered(Answer::Connected) == 1);
            Ok(())
        })
    })
}

#[test]
fn a_half_closed_request_gets_its_whole_answer() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let answer = pattern(100 * MIB, 1);
            let serve = async {
                let (mut stream, _) = listener.accept().await?;
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                stream.write_all(&answer).await?;
                anyhow::Ok(request)
            };
            let (request, received) =
                tokio::join!(serve, exchange(&near.tunnel, &far, b"the request"));
            ensure!(request? == b"the request");
            ensure!(received? == answer, "the answer is not what was sent");
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_in_both_directions() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            for by_client in [true, false] {
                let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
                let (mut server, _) = listener.accept().await?;
                carried.client.write_all(b"x").await?;
                server.read_exact(&mut [0]).await?;
                let mut other = if by_client {
                    drop(ResetOnDrop::new(carried.client));
                    server
                } else {
                    drop(ResetOnDrop::new(server));
                    carried.client
                };
                let error = timeout(PATIENCE, other.read(&mut [0])).await?;
                let kind = error.map_err(|error| error.kind());
                ensure!(kind == Err(ErrorKind::ConnectionReset), "{kind:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_while_nobody_reads() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
            let (server, _) = listener.accept().await?;
            // Until nothing more fits into the way to the client, which does not read.
            let chunk = vec![0; MIB];
            loop {
                let wrote = timeout(Duration::from_millis(300), server.writable()).await;
                if wrote.is_err() {
                    break;
                }
                let _ = server.try_write(&chunk);
            }
            drop(ResetOnDrop::new(server));
            let broken = carried.ended().await?;
            ensure!(matches!(broken, Err(Broken::Tunnel(_))), "{broken:?}");
            Ok(())
        })
    })
}

#[test]
fn a_thousand_connections_at_once_each_get_their_own_bytes() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let far = Arc::new(far);
            let mut exchanges = JoinSet::new();
            for seed in 0..1000 {
                let (tunnel, far) = (near.tunnel.clone(), Arc::clone(&far));
                exchanges.spawn(async move {
                    let sent = pattern(20_000, seed);
                    let received = exchange(&tunnel, &far, &sent).await?;
                    ensure!(received == sent, "connection {seed} got other bytes");
                    Ok(())
                });
            }
            while let Some(exchanged) = exchanges.join_next().await {
                exchanged??;
            }
            Ok(())
        })
    })
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            exchange(&near.tunnel, &far, b"warm").await?;
            let files = open_files()?;
            let far = Arc::new(far);
            let mut workers = JoinSet::new();
            for _ in 0..50 {
                let (tunnel, far) = (near.tunnel.clone(), Arc::clone(&far));
                workers.spawn(async move {
                    for _ in 0..200 {
                        exchange(&tunnel, &far, b"x").await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(done) = workers.join_next().await {
                done??;
            }
            eventually("streams end", || {
                near.tunnel.counters().streams_out() == 0 && far.tunnel.counters().streams_in() == 0
            })
            .await?;
            // The kernel and the endpoint take a moment for the last ones.
            eventually("streams and files are given back", || {
                near.tunnel.peers().iter().all(|peer| peer.streams == 0)
                    && open_files().is_ok_and(|left| left <= files)
            })
            .await
        })
    })
}

#[test]
fn what_is_no_endpoint_of_the_exits_node_is_refused_with_the_reason() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let _ssh = TcpListener::bind("127.0.0.1:8080").await?;
            let _others = Echo::start(endpoint(3)).await?;
            let _filtered = Echo::start(endpoint(4)).await?;
            let near = cluster.join("near").await?;
            let far = cluster.join("far").await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far), (endpoint(3), &near)]);
            cluster.service_with_label("own", Tcp, &[(endpoint(4), &far)], true);
            let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
            cluster.service("trick", Tcp, &[(loopback, &far)]);
            // The ClusterIP of all Services here, as an endpoint: a loop.
            let portal = SocketAddr::from(([10, 96, 0, 1], 8080));
            cluster.service("loop", Tcp, &[(portal, &far)]);
            near.knows(&far).await?;
            for (service, endpoint, fault) in [
                ("web", loopback, OpenFault::NotAnEndpoint),
                ("web", endpoint(2), OpenFault::NotAnEndpoint),
                ("web", endpoint(3), OpenFault::NotAnEndpoint),
                ("nothing", endpoint(1), OpenFault::NotAnEndpoint),
                ("trick", loopback, OpenFault::NotAnEndpoint),
                ("loop", portal, OpenFault::NotAnEndpoint),
                ("own", endpoint(4), OpenFault::Filtered),
            ] {
                let target = target(service, Tcp, endpoint);
                let refused = near
                    .tunnel
                    .open_tcp(&far.name, target, FirstBytes::default())
                    .await
                    .err();
                ensure!(refused == Some(fault), "{service} {endpoint}: {refused:?}");
            }
            let counters = far.tunnel.counters();
            ensure!(counters.answered(Answer::NotAnEndpoint) == 6);
            ensure!(counters.answered(Answer::Filtered) == 1);
            ensure!(exchange(&near.tunnel, &far, b"x").await? == b"x");
            Ok(())
        })
    })
}

#[test]
fn an_endpoint_that_refuses_is_told_from_one_that_is_silent() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let near = cluster.join("near").await?;
            let far = cluster
                .join_with("far", |settings| {
                    settings.timing.dial = Duration::from_millis(300);
                })
                .await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far), (endpoint(2), &far)]);
            edgemesh_lab::Program::new("iptables-nft")
                .args(["-A", "INPUT", "-d", "10.1.0.2", "-j", "DROP"])
                .run()?;
            near.knows(&far).await?;
            for (at, fault) in [
                (endpoint(1), OpenFault::Refused),
                (endpoint(2), OpenFault::TimedOut),
            ] {
                let target = target("web", Tcp, at);
                let refused = near
                    .tunnel
                    .open_tcp(&far.name, target, FirstBytes::default())
                    .await
                    .err();
                ensure!(refused == Some(fault), "{at}: {refused:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn more_streams_than_a_peer_may_have_are_busy_at_once() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let near = cluster.join("near").await?;
            let far = cluster
                .join_with("far", |settings| settings.limits.streams_in_per_peer = 2)
                .await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            let one = open(&near.tunnel, &far).await?;
            let _two = open(&near.tunnel, &far).await?;
            let refused = open(&near.tunnel, &far).await.err();
            ensure!(refused == Some(OpenFault::Busy), "{refused:?}");
            drop(one);
            eventually("the place is free again", || {
                far.tunnel.counters().streams_in() == 1
            })
            .await?;
            open(&near.tunnel, &far).await?;
            Ok(())
        })
    })
}

#[test]
fn who_has_no_believed_mesh_node_gets_nothing() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let near = cluster.join("near").await?;
            let far = cluster.join("far").await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            // One with a name that looks right, one with a stolen name; both see the cluster.
            let stranger = cluster.start("edge-7", |_| {}).await?;
            let thief = cluster.start_with_key("near", "thief", |_| {}).await?;
            for outsider in [&stranger, &thief] {
                outsider.knows(&far).await?;
                let refused = open(&outsider.tunnel, &far).await.err();
                ensure!(refused == Some(OpenFault::PeerDown), "{refused:?}");
            }
            ensure!(far.tunnel.counters().strangers() >= 2);
            ensure!(far.tunnel.counters().streams_in() == 0);
            Ok(())
        })
    })
}

#[test]
fn who_comes_a_moment_before_word_of_it_is_let_in() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let far = cluster.join("far").await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            let near = cluster.start("near", |_| {}).await?;
            near.knows(&far).await?;
            let word = async {
                let at_the_door = || near.tunnel.counters().connected() > 0;
                eventually("it is at the door", at_the_door).await?;
                cluster.introduce(&near);
                anyhow::Ok(())
            };
            let (opened, word) = tokio::join!(open(&near.tunnel, &far), word);
            word?;
            opened?;
            ensure!(far.tunnel.counters().strangers() == 0);
            Ok(())
        })
    })
}

#[test]
fn a_peer_whose_node_is_gone_is_one_no_more() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
            cluster.apply(Change::NodeGone(near.name.clone()));
            let cut = carried.ended().await?;
            ensure!(matches!(cut, Err(Broken::Tunnel(_))), "{cut:?}");
            let refused = open(&near.tunnel, &far).await.err();
            ensure!(refused.is_some(), "it is still served");
            Ok(())
        })
    })
}

#[test]
fn a_service_that_goes_ends_no_connection() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
            let web = ObjectName::new("default", "web");
            cluster.apply(Change::ServiceGone(web.clone()));
            cluster.apply(Change::SliceGone(web));
            let refused = open(&near.tunnel, &far).await.err();
            ensure!(refused == Some(OpenFault::NotAnEndpoint), "{refused:?}");
            carried.client.write_all(b"still here").await?;
            let mut answer = [0; 10];
            carried.client.read_exact(&mut answer).await?;
            ensure!(&answer == b"still here");
            Ok(())
        })
    })
}

#[test]
fn an_agent_that_ends_lets_its_streams_end_and_serves_others_meanwhile() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
            let name = far.name.clone();
            let again = target("web", Tcp, endpoint(1));
            let mut ending = JoinSet::new();
            ending.spawn(far.running.shut_down(PATIENCE));
            for _ in 0..20 {
                let opened = near
                    .tunnel
                    .open_tcp(&name, again.clone(), FirstBytes::default())
                    .await;
                drop(opened.context("while it waits for an earlier one")?);
            }
            carried.client.write_all(b"last words").await?;
            carried.client.shutdown().await?;
            let mut answer = Vec::new();
            carried.client.read_to_end(&mut answer).await?;
            ensure!(answer == b"last words");
            let cut = timeout(PATIENCE, ending.join_next()).await?;
            ensure!(cut.context("it was started")?? == 0, "a stream was cut");
            let gone = near
                .tunnel
                .open_tcp(&name, again, FirstBytes::default())
                .await
                .err();
            ensure!(gone.is_some(), "it is still served");
            Ok(())
        })
    })
}

#[test]
fn a_loop_of_connections_passes_from_an_agent_that_ends_to_its_successor() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            exchange(&near.tunnel, &far, b"x").await?;
            let mut held = Carried::over(open(&near.tunnel, &far).await?).await?;
            // Same node, same key, while the first still lives.
            let next = cluster.join("far").await?;
            let mut ending = JoinSet::new();
            ending.spawn(far.running.shut_down(PATIENCE));
            let mut served_by_next = false;
            let served = async {
                let mut round = 0;
                while !served_by_next {
                    let heard = match round % 2 {
                        0 => exchange(&near.tunnel, &next, b"x").await,
                        _ => exchange_at_once(&near.tunnel, &next, b"x").await,
                    };
                    let heard = heard.with_context(|| format!("exchange {round}"))?;
                    ensure!(heard == b"x");
                    round += 1;
                    if round == 20 {
                        held.client.shutdown().await?;
                    }
                    served_by_next = next.tunnel.counters().answered(Answer::Connected) > 5;
                }
                anyhow::Ok(())
            };
            timeout(PATIENCE, served).await??;
            let cut = timeout(PATIENCE, ending.join_next()).await?;
            ensure!(cut.context("it was started")?? == 0, "a stream was cut");
            ensure!(
                held.ended().await?.is_ok(),
                "the held one was not ended in order"
            );
            Ok(())
        })
    })
}

#[test]
fn a_peer_that_vanished_and_came_back_is_reached_again() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut carried = Carried::over(open(&near.tunnel, &far).await?).await?;
            // As after kill -9: nothing is said.
            let gone = far.tunnel.listening_at()[0].ip().to_string();
            for way in ["-s", "-d"] {
                edgemesh_lab::Program::new("iptables-nft")
                    .args(["-A", "INPUT", way, &gone, "-j", "DROP"])
                    .run()?;
            }
            let started = cluster.join("far").await?;
            let reached = async {
                while exchange(&near.tunnel, &started, b"x").await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, reached).await.context("reached again")?;
            // What the old one carried does not hang for long.
            let cut = carried.ended().await?;
            ensure!(cut.is_err(), "its endpoint's agent is gone");
            Ok(())
        })
    })
}

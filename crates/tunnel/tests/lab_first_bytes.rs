//! The first bytes of clients, which travel with the request for their endpoint: they are there
//! before the answer is, and no endpoint gets what another one may have got.

mod stage;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol::Tcp;
use edgemesh_lab::Program;
use edgemesh_tunnel::{OpenFault, TunnelStream};
use edgemesh_wire::Answer;
use stage::tcp::{Carried, Client, Echo, exchange, pattern, send_and_hear, two_nodes};
use stage::{Cluster, Member, PATIENCE, endpoint, eventually, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What a client says first in these tests.
const FIRST: &[u8] = b"first words; ";

/// `default/web` with its endpoints 1 and 2 on `far`, which has been reached before.
async fn two_endpoints(cluster: &mut Cluster) -> Result<(Member, Member)> {
    let near = cluster.join("near").await?;
    let far = cluster
        .join_with("far", |settings| {
            // No test waits for it but the one that is about it.
            settings.timing.at_once = Duration::from_secs(60);
            settings.timing.dial = Duration::from_secs(60);
        })
        .await?;
    cluster.service("web", Tcp, &[(endpoint(1), &far), (endpoint(2), &far)]);
    near.knows(&far).await?;
    near.reaches(&far).await?;
    Ok((near, far))
}

/// Does something with the rule: adds it (`-I`) or takes it out (`-D`).
fn rule(action: &str, rule: &[&str]) -> Result<()> {
    Program::new("iptables-nft")
        .args([action, "INPUT"])
        .args(rule)
        .run()?;
    Ok(())
}

/// Nothing that `node` says arrives anywhere, or it does again.
fn mute(action: &str, node: &Member) -> Result<()> {
    rule(action, &["-s", &node.address(), "-j", "DROP"])
}

/// What `listener`'s next client says, up to as many bytes as `expected`.
async fn hears(listener: &TcpListener, expected: &[u8]) -> Result<TcpStream> {
    let heard = async {
        let (mut stream, _) = listener.accept().await?;
        let mut heard = vec![0; expected.len()];
        stream.read_exact(&mut heard).await?;
        ensure!(heard == expected, "{heard:?}");
        Ok(stream)
    };
    timeout(PATIENCE, heard).await.context("nothing is heard")?
}

/// Whether `opening` is still without an answer.
async fn is_open(
    opening: &mut (impl Future<Output = Result<TunnelStream, OpenFault>> + Unpin),
) -> bool {
    poll_fn(|cx| Poll::Ready(pin!(&mut *opening).poll(cx).is_pending())).await
}

#[test]
fn the_endpoint_has_them_a_round_trip_before_the_client_could_be_answered() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_endpoints(cluster).await?;
            for said_before in [true, false] {
                let mut client = Client::silent().await?;
                if said_before {
                    client.says(FIRST).await?;
                }
                let mut opening = Box::pin(client.open(&near.tunnel, &far, endpoint(1)));
                // Whatever the far node answers, it is not heard.
                mute("-I", &far)?;
                ensure!(is_open(&mut opening).await);
                if !said_before {
                    client.says(FIRST).await?;
                }
                let mut server = tokio::select! {
                    server = hears(&listener, FIRST) => server?,
                    opened = &mut opening => anyhow::bail!("{opened:?} without an answer"),
                };
                ensure!(is_open(&mut opening).await, "it was answered");
                mute("-D", &far)?;
                let opened = timeout(PATIENCE, opening).await??;
                let serve = async {
                    let mut rest = Vec::new();
                    server.read_to_end(&mut rest).await?;
                    server.write_all(b"the answer").await?;
                    server.shutdown().await?;
                    anyhow::Ok(rest)
                };
                let carried = Carried::of(client, opened);
                let (rest, heard) = tokio::join!(serve, send_and_hear(carried, b"and the rest"));
                ensure!(rest? == b"and the rest");
                ensure!(heard? == b"the answer");
            }
            let counters = near.tunnel.counters();
            ensure!(counters.bytes_out() == 2 * (FIRST.len() + 12) as u64);
            ensure!(far.tunnel.counters().bytes_in() == counters.bytes_out());
            Ok(())
        })
    })
}

#[test]
fn a_thousand_clients_that_speak_first_are_each_heard_whole() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            exchange(&near.tunnel, &far, b"warm").await?;
            let mut exchanges = JoinSet::new();
            for seed in 0..1000_u64 {
                // Up to more than what goes along.
                let first = pattern(1 + 5 * seed as usize, seed);
                let client = Client::that_said(&first).await?;
                let opening = client.open(&near.tunnel, &far, endpoint(1));
                exchanges.spawn(async move {
                    let opened = opening.await?;
                    let rest = pattern(2000, seed + 1);
                    let heard = send_and_hear(Carried::of(client, opened), &rest).await?;
                    ensure!(heard == [first, rest].concat(), "connection {seed}");
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
fn a_client_that_ends_its_stream_behind_them_gets_its_answer() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            let mut client = Client::that_said(FIRST).await?;
            client.client.shutdown().await?;
            let opened = client.open(&near.tunnel, &far, endpoint(1)).await?;
            ensure!(send_and_hear(Carried::of(client, opened), b"").await? == FIRST);
            Ok(())
        })
    })
}

#[test]
fn what_one_endpoint_refused_the_next_one_gets_once_and_whole() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_endpoints(cluster).await?;
            let client = Client::that_said(FIRST).await?;
            let refused = client.open(&near.tunnel, &far, endpoint(2)).await.err();
            ensure!(refused == Some(OpenFault::Refused), "{refused:?}");
            let refused = client.open(&near.tunnel, &far, endpoint(3)).await.err();
            ensure!(refused == Some(OpenFault::NotAnEndpoint), "{refused:?}");
            ensure!(!client.first.may_be_delivered());
            let opened = client.open(&near.tunnel, &far, endpoint(1)).await?;
            let carried = Carried::of(client, opened);
            let serve = async {
                let (mut stream, _) = listener.accept().await?;
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await?;
                anyhow::Ok(heard)
            };
            let (heard, ended) = tokio::join!(serve, send_and_hear(carried, b"and the rest"));
            ended?;
            ensure!(heard? == [FIRST, b"and the rest"].concat());
            Ok(())
        })
    })
}

#[test]
fn an_endpoint_that_does_not_accept_at_once_gives_them_back() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let near = cluster.join("near").await?;
            let far = cluster
                .join_with("far", |settings| {
                    settings.timing.at_once = Duration::from_millis(100);
                    settings.timing.dial = PATIENCE;
                })
                .await?;
            cluster.service("web", Tcp, &[(endpoint(1), &far)]);
            near.knows(&far).await?;
            near.reaches(&far).await?;
            let endpoint_is_silent = ["-d", "10.1.0.1", "-j", "DROP"];
            for said_before in [true, false] {
                rule("-I", &endpoint_is_silent)?;
                let answered = far.tunnel.counters().answered(Answer::NotAtOnce);
                let mut client = Client::silent().await?;
                if said_before {
                    client.says(FIRST).await?;
                }
                let mut opening = JoinSet::new();
                opening.spawn(client.open(&near.tunnel, &far, endpoint(1)));
                if !said_before {
                    let asked = || far.tunnel.counters().streams_in() == 1;
                    eventually("it is asked for", asked).await?;
                    client.says(FIRST).await?;
                }
                eventually("they are dropped there", || {
                    far.tunnel.counters().answered(Answer::NotAtOnce) == answered + 1
                })
                .await?;
                timeout(PATIENCE, client.first.free()).await?;
                ensure!(client.first.withhold(), "another one may be tried by now");
                rule("-D", &endpoint_is_silent)?;
                let opened = timeout(PATIENCE, opening.join_next()).await?;
                let opened = opened.context("it was started")???;
                let heard = send_and_hear(Carried::of(client, opened), b"and the rest").await?;
                ensure!(heard == [FIRST, b"and the rest"].concat());
            }
            ensure!(near.tunnel.counters().offences() == 0);
            Ok(())
        })
    })
}

#[test]
fn when_the_answer_is_lost_nobody_else_gets_them() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            let (near, far) = two_endpoints(cluster).await?;
            let client = Client::that_said(FIRST).await?;
            let mut opening = Box::pin(client.open(&near.tunnel, &far, endpoint(1)));
            mute("-I", &far)?;
            let heard = tokio::select! {
                heard = hears(&listener, FIRST) => heard?,
                opened = &mut opening => anyhow::bail!("{opened:?} without an answer"),
            };
            // As after kill -9; the next run of its agent would take what it is asked for.
            let next = cluster.join("far").await?;
            let reached = async {
                while near.reaches(&next).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let (lost, ()) = timeout(PATIENCE, async { tokio::join!(opening, reached) }).await?;
            let lost = lost.err();
            ensure!(lost == Some(OpenFault::PeerDown), "{lost:?}");
            ensure!(client.first.may_be_delivered());
            drop(heard);
            // Nobody else came; who comes now is the next one.
            let client = Client::that_said(b"others' words").await?;
            let _opened = client.open(&near.tunnel, &next, endpoint(1)).await?;
            hears(&listener, b"others' words").await?;
            Ok(())
        })
    })
}

#[test]
fn they_count_where_a_stream_goes_on_after_a_silence() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let _echo = Echo::start(endpoint(1)).await?;
            let (near, far) = two_nodes(cluster).await?;
            near.reaches(&far).await?;
            let client = Client::that_said(FIRST).await?;
            let opened = client.open(&near.tunnel, &far, endpoint(1)).await?;
            let mut carried = Carried::of(client, opened);
            let mut echoed = [0; FIRST.len()];
            carried.client.read_exact(&mut echoed).await?;
            let silence = ["-s", "10.1.200.0/24", "-j", "DROP"];
            rule("-I", &silence)?;
            carried.client.write_all(b"said into the silence; ").await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            rule("-D", &silence)?;
            eventually("it goes on", || near.tunnel.counters().resumed() == 1).await?;
            let heard = send_and_hear(carried, b"and the rest").await?;
            ensure!(heard == b"said into the silence; and the rest");
            Ok(())
        })
    })
}

//! UDP through real DNAT rules: what clients and endpoints see of the forwarder in between.

mod stage;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol::Udp;
use edgemesh_forward::{FlowEnded, Settings};
use stage::{
    PATIENCE, client, cluster_ip, cluster_ip_v6, endpoint, endpoint_v6, eventually, open_files,
    run, settings,
};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

fn dns() -> SocketAddr {
    SocketAddr::new(cluster_ip(1), 80)
}

/// An endpoint that sends back each datagram, with its own name in front.
struct Echo {
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start(at: SocketAddr, name: &'static [u8]) -> Result<Self> {
        let socket = UdpSocket::bind(at).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                let answer = [name, &buffer[..n]].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Ok(Self { _tasks: tasks })
    }

    /// Ends it; its port is free afterwards.
    async fn stop(mut self) {
        self._tasks.shutdown().await;
    }
}

/// A client's socket, connected to `to`: only answers from there count.
async fn socket(from: SocketAddr, to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    Ok(socket)
}

async fn ask(socket: &UdpSocket, datagram: &[u8]) -> Result<Vec<u8>> {
    socket.send(datagram).await?;
    receive(socket).await
}

async fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut answer = vec![0; 65536];
    let n = timeout(PATIENCE, socket.recv(&mut answer))
        .await
        .context("no answer")??;
    answer.truncate(n);
    Ok(answer)
}

#[test]
fn datagrams_of_every_size_pass_whole_in_both_families() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _v4 = Echo::start(endpoint(1), b"").await?;
            let _v6 = Echo::start(endpoint_v6(1), b"").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            stage.service("dns6", cluster_ip_v6(1), Udp, &[endpoint_v6(1)])?;
            let v6: SocketAddr = "[::]:0".parse()?;
            for (from, to) in [
                (client(1), dns()),
                (v6, SocketAddr::new(cluster_ip_v6(1), 80)),
            ] {
                let socket = socket(from, to).await?;
                for size in [0, 1, 512, 1400, 1472, 1473, 9000, 32768, 65506, 65507] {
                    let datagram: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                    ensure!(ask(&socket, &datagram).await? == datagram, "{size} to {to}");
                }
            }
            Ok(())
        })
    })
}

#[test]
fn each_client_address_has_a_flow_of_its_own_and_keeps_its_endpoint() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"1").await?;
            let _two = Echo::start(endpoint(2), b"2").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1), endpoint(2)])?;
            let sockets = [
                socket(client(1), dns()).await?,
                socket(client(1), dns()).await?,
            ];
            let mut answers = Vec::new();
            for socket in &sockets {
                let first = ask(socket, b"").await?;
                for _ in 0..5 {
                    ensure!(ask(socket, b"").await? == first);
                }
                answers.push(first);
            }
            answers.sort();
            ensure!(
                answers == [b"1", b"2"],
                "round robin over flows: {answers:?}"
            );
            ensure!(stage.counters().active_udp_flows() == 2);
            Ok(())
        })
    })
}

#[test]
fn a_client_with_affinity_has_one_endpoint_for_all_its_flows() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"1").await?;
            let _two = Echo::start(endpoint(2), b"2").await?;
            let both = [endpoint(1), endpoint(2)];
            let hour = Some(Duration::from_secs(3600));
            stage.service_with_affinity("dns", cluster_ip(1), Udp, &both, hour)?;
            let mut answers = Vec::new();
            for n in 1..=2 {
                let first = ask(&socket(client(n), dns()).await?, b"").await?;
                for _ in 0..5 {
                    ensure!(ask(&socket(client(n), dns()).await?, b"").await? == first);
                }
                answers.push(first);
            }
            answers.sort();
            ensure!(answers == [b"1", b"2"], "{answers:?}");
            Ok(())
        })
    })
}

#[test]
fn a_flow_moves_when_its_endpoint_leaves_the_plan() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"1").await?;
            let _two = Echo::start(endpoint(2), b"2").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let socket = socket(client(1), dns()).await?;
            ensure!(ask(&socket, b"").await? == b"1");
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1), endpoint(2)])?;
            ensure!(
                ask(&socket, b"").await? == b"1",
                "its endpoint is still there"
            );
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(2)])?;
            let counters = stage.counters();
            eventually("the flow has ended", || {
                counters.udp_flows_ended(FlowEnded::EndpointGone) == 1
            })
            .await?;
            ensure!(ask(&socket, b"").await? == b"2");
            Ok(())
        })
    })
}

#[test]
fn a_flow_moves_when_its_endpoint_refuses() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let one = Echo::start(endpoint(1), b"1").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let socket = socket(client(1), dns()).await?;
            ensure!(ask(&socket, b"").await? == b"1");
            let _two = Echo::start(endpoint(2), b"2").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1), endpoint(2)])?;
            one.stop().await;
            // This one is lost, as it would be without us: it is how the refusal is learnt.
            socket.send(b"").await?;
            let counters = stage.counters();
            eventually("the flow has ended", || {
                counters.udp_flows_ended(FlowEnded::EndpointFailed) == 1
            })
            .await?;
            for _ in 0..3 {
                ensure!(ask(&socket, b"").await? == b"2");
            }
            Ok(())
        })
    })
}

#[test]
fn one_flow_too_many_puts_the_least_recently_used_out() -> Result<()> {
    edgemesh_lab::test(|_| {
        let settings = Settings {
            max_udp_flows: 3,
            ..settings()
        };
        run(&settings, async |stage| {
            let _one = Echo::start(endpoint(1), b"").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let counters = stage.counters();
            let mut sockets = Vec::new();
            for _ in 0..3 {
                let socket = socket(client(1), dns()).await?;
                ask(&socket, b"x").await?;
                sockets.push(socket);
            }
            ask(&sockets[0], b"x").await?;
            for n in 1..=2 {
                sockets.push(socket(client(1), dns()).await?);
                ask(&sockets[sockets.len() - 1], b"x").await?;
                eventually("one is out", || {
                    counters.udp_flows_ended(FlowEnded::Evicted) == n
                        && counters.active_udp_flows() == 3
                })
                .await?;
            }
            // The first was used since: it still has its flow and needs no other.
            ask(&sockets[0], b"x").await?;
            ensure!(counters.udp_flows_ended(FlowEnded::Evicted) == 2);
            Ok(())
        })
    })
}

#[test]
fn an_idle_flow_is_forgotten_and_leaves_no_descriptor() -> Result<()> {
    edgemesh_lab::test(|_| {
        let settings = Settings {
            udp_idle_timeout: Duration::from_millis(300),
            ..settings()
        };
        run(&settings, async |stage| {
            let _one = Echo::start(endpoint(1), b"").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let counters = stage.counters();
            let files = open_files()?;
            // Kept open, so that no two get the same port.
            let mut sockets = Vec::new();
            for _ in 0..200 {
                sockets.push(socket(client(1), dns()).await?);
                ask(&sockets[sockets.len() - 1], b"x").await?;
            }
            drop(sockets);
            eventually("all flows are forgotten", || {
                counters.udp_flows_ended(FlowEnded::Idle) == 200
            })
            .await?;
            eventually("no descriptor is left", || {
                open_files().is_ok_and(|now| now <= files)
            })
            .await?;
            Ok(())
        })
    })
}

#[test]
fn a_portal_without_endpoints_refuses_at_once() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            stage.service("dns", cluster_ip(1), Udp, &[])?;
            let socket = socket(client(1), dns()).await?;
            let error = ask(&socket, b"x").await.unwrap_err();
            let kind = error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind);
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error:#}");
            Ok(())
        })
    })
}

#[test]
fn a_portal_keeps_its_port_over_changes_and_closes_it_when_it_is_gone() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"").await?;
            let before = open_files()?;
            let first = stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let second = stage.service("dns", cluster_ip(1), Udp, &[endpoint(1), endpoint(2)])?;
            ensure!(first == second);
            stage.remove("dns")?;
            eventually("its socket is closed", || {
                open_files().is_ok_and(|now| now <= before)
            })
            .await?;
            let third = stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            ensure!(third.ports.len() == 1 && third.failed.is_empty());
            let socket = socket(client(1), dns()).await?;
            ensure!(ask(&socket, b"again").await? == b"again");
            Ok(())
        })
    })
}

#[test]
fn a_service_that_takes_an_address_over_gets_none_of_the_old_ones_endpoints() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"1").await?;
            let _two = Echo::start(endpoint(2), b"2").await?;
            let old = stage.service("old", cluster_ip(1), Udp, &[endpoint(1)])?;
            ensure!(ask(&socket(client(1), dns()).await?, b"").await? == b"1");
            stage.remove("old")?;
            let new = stage.service("new", cluster_ip(1), Udp, &[endpoint(2)])?;
            ensure!(ask(&socket(client(1), dns()).await?, b"").await? == b"2");
            ensure!(
                old.ports != new.ports,
                "not the port that old flows still lead to"
            );
            Ok(())
        })
    })
}

#[test]
fn a_burst_of_many_clients_is_answered_whole() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _one = Echo::start(endpoint(1), b"").await?;
            stage.service("dns", cluster_ip(1), Udp, &[endpoint(1)])?;
            let mut clients = JoinSet::new();
            for n in 0..100_u8 {
                clients.spawn(async move {
                    let socket = socket(client(1), dns()).await?;
                    for i in 0..50_u8 {
                        ensure!(ask(&socket, &[n, i]).await? == [n, i]);
                    }
                    Ok(())
                });
            }
            while let Some(done) = clients.join_next().await {
                done??;
            }
            ensure!(stage.counters().active_udp_flows() == 100);
            Ok(())
        })
    })
}

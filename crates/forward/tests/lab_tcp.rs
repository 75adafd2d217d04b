//! TCP through real DNAT rules: what clients and endpoints see of the forwarder in between.

mod stage;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol::Tcp;
use edgemesh_forward::{DialFault, Drained, Refused, Settings};
use stage::{
    INTERCEPT_V4, PATIENCE, cluster_ip, cluster_ip_v6, endpoint, endpoint_v6, eventually,
    open_files, run, settings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

fn web() -> SocketAddr {
    SocketAddr::new(cluster_ip(1), 80)
}

/// An endpoint that sends back whatever comes, until its client ends the stream.
struct Echo {
    served: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start(at: SocketAddr) -> Result<Self> {
        let listener = listen(at)?;
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        Ok(Self {
            served,
            _tasks: tasks,
        })
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

fn listen(at: SocketAddr) -> Result<TcpListener> {
    let socket = socket_like(at)?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    Ok(socket.listen(4096)?)
}

fn socket_like(at: SocketAddr) -> std::io::Result<TcpSocket> {
    if at.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    Ok(timeout(PATIENCE, TcpStream::connect(to)).await??)
}

/// Sends `text`, ends the stream, and returns all that comes back.
async fn exchange(to: SocketAddr, text: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(to).await?;
    stream.write_all(text).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
    Ok(answer)
}

/// What a client of `to` sees of a connection that is refused.
async fn how_it_ends(to: SocketAddr) -> Result<ErrorKind> {
    let mut stream = match timeout(PATIENCE, TcpStream::connect(to)).await? {
        Ok(stream) => stream,
        Err(error) => return Ok(error.kind()),
    };
    match timeout(PATIENCE, stream.read(&mut [0])).await? {
        Ok(n) => anyhow::bail!("read {n} bytes instead of being refused"),
        Err(error) => Ok(error.kind()),
    }
}

/// Resident memory of this process.
fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("the kernel tells no VmRSS")?.parse()?)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 31 % 251) as u8).collect()
}

#[test]
fn both_families_reach_their_endpoint_through_the_portal() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _v4 = Echo::start(endpoint(1)).await?;
            let _v6 = Echo::start(endpoint_v6(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            stage.service("web6", cluster_ip_v6(1), Tcp, &[endpoint_v6(1)])?;
            for to in [web(), SocketAddr::new(cluster_ip_v6(1), 80)] {
                ensure!(exchange(to, b"hello").await? == b"hello", "{to}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_half_closed_request_gets_its_whole_answer() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let listener = listen(endpoint(1))?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let answer = pattern(10 * MIB, 0);
            let serve = async {
                let (mut stream, _) = listener.accept().await?;
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                stream.write_all(&answer).await?;
                anyhow::Ok(request)
            };
            let (request, got) = tokio::join!(serve, exchange(web(), b"all of it"));
            ensure!(request? == b"all of it");
            ensure!(got? == answer);
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_in_both_directions() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let listener = listen(endpoint(1))?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            for by_client in [true, false] {
                let mut client = connect(web()).await?;
                let (mut server, _) = listener.accept().await?;
                client.write_all(b"x").await?;
                server.read_exact(&mut [0]).await?;
                let (breaker, mut other) = if by_client {
                    (client, server)
                } else {
                    (server, client)
                };
                breaker.set_zero_linger()?;
                drop(breaker);
                let end = timeout(PATIENCE, other.read(&mut [0])).await?;
                ensure!(end.unwrap_err().kind() == ErrorKind::ConnectionReset);
            }
            Ok(())
        })
    })
}

#[test]
fn a_client_that_does_not_read_stops_its_endpoint_and_bounds_memory() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let listener = listen(endpoint(1))?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let mut client = connect(web()).await?;
            let (server, _) = listener.accept().await?;
            let before = resident_kib()?;
            let chunk = vec![7; 64 * 1024];
            let mut sent = 0_usize;
            while let Ok(ready) = timeout(Duration::from_millis(300), server.writable()).await {
                ready?;
                match server.try_write(&chunk) {
                    Ok(n) => sent += n,
                    Err(error) => ensure!(error.kind() == ErrorKind::WouldBlock),
                }
                ensure!(sent < 256 * MIB, "nothing stops the endpoint");
            }
            let grown = resident_kib()?.saturating_sub(before);
            println!("{sent} bytes under way, memory of the process grew by {grown} KiB");
            ensure!(grown < 4096);
            let mut got = vec![0; sent];
            timeout(PATIENCE, client.read_exact(&mut got)).await??;
            ensure!(got.iter().all(|byte| *byte == 7));
            Ok(())
        })
    })
}

#[test]
fn a_thousand_connections_at_once_keep_their_bytes_apart() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let echo = Echo::start(endpoint(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let before = resident_kib()?;
            let mut open = Vec::new();
            for _ in 0..1000 {
                open.push(connect(web()).await?);
            }
            eventually("all are served", || echo.served() == 1000).await?;
            let idle = resident_kib()?.saturating_sub(before);
            println!(
                "{idle} KiB for 1000 idle connections, with the clients and the endpoint in \
                 the same process"
            );
            let mut clients = JoinSet::new();
            for (seed, mut stream) in open.into_iter().enumerate() {
                clients.spawn(async move {
                    let data = pattern(100_000 + seed, seed);
                    let (mut reader, mut writer) = stream.split();
                    let mut got = Vec::new();
                    let (read, written) = tokio::join!(reader.read_to_end(&mut got), async {
                        writer.write_all(&data).await?;
                        writer.shutdown().await
                    });
                    read?;
                    written?;
                    ensure!(got == data, "connection {seed}");
                    Ok(())
                });
            }
            while let Some(done) = clients.join_next().await {
                done??;
            }
            let counters = stage.counters();
            eventually("all have ended", || counters.active_connections() == 0).await?;
            Ok(())
        })
    })
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _echo = Echo::start(endpoint(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let counters = stage.counters();
            let mut files = 0;
            let mut memory = 0;
            for round in 0..100 {
                let mut clients = JoinSet::new();
                for _ in 0..100 {
                    clients.spawn(exchange(web(), b"hello"));
                }
                while let Some(answer) = clients.join_next().await {
                    ensure!(answer?? == b"hello");
                }
                eventually("all have ended", || counters.active_connections() == 0).await?;
                if round == 9 {
                    files = open_files()?;
                    memory = resident_kib()?;
                }
            }
            // The endpoint's last sockets may be a moment behind.
            eventually("no descriptor is left", || {
                open_files().is_ok_and(|now| now <= files)
            })
            .await?;
            let grown = resident_kib()?.saturating_sub(memory);
            println!("memory grew by {grown} KiB over the last 9000 connections");
            ensure!(grown < 2048);
            Ok(())
        })
    })
}

#[test]
fn a_dead_endpoint_beside_a_live_one_is_not_noticed() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let echo = Echo::start(endpoint(1)).await?;
            // Nobody listens on the second; the third has gone silent.
            let silent = silent_listener(endpoint(3)).await?;
            stage.service(
                "web",
                cluster_ip(1),
                Tcp,
                &[endpoint(1), endpoint(2), endpoint(3)],
            )?;
            for _ in 0..100 {
                ensure!(exchange(web(), b"hello").await? == b"hello");
            }
            ensure!(echo.served() == 100);
            let counters = stage.counters();
            ensure!(counters.dials_failed(DialFault::Refused) >= 1);
            ensure!(counters.refused(Refused::DialFailed) == 0);
            // It was in turn a third of the time, and asked once, or again as often as a trial
            // was due meanwhile.
            let silences = || counters.dials_failed(DialFault::TimedOut);
            eventually("nobody waits for the silent one", || silences() >= 1).await?;
            ensure!(silences() <= 4, "{} connections tried it", silences());
            drop(silent);
            Ok(())
        })
    })
}

/// A listener whose queue is full: the kernel drops whoever else wants to connect.
async fn silent_listener(at: SocketAddr) -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = socket_like(at)?;
    socket.bind(at)?;
    let listener = socket.listen(0)?;
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(500), TcpStream::connect(at)).await {
        queue.push(stream?);
    }
    Ok((listener, queue))
}

#[test]
fn with_all_endpoints_dead_clients_are_refused_within_the_deadline() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1), endpoint(2)])?;
            ensure!(how_it_ends(web()).await? == ErrorKind::ConnectionReset);

            let silent = silent_listener(endpoint(3)).await?;
            stage.service("slow", cluster_ip(2), Tcp, &[endpoint(3)])?;
            let since = Instant::now();
            let end = how_it_ends(SocketAddr::new(cluster_ip(2), 80)).await?;
            println!("a silent endpoint: {end:?} after {:?}", since.elapsed());
            ensure!(end == ErrorKind::ConnectionReset);
            let counters = stage.counters();
            eventually("both are counted", || {
                counters.refused(Refused::DialFailed) == 2
            })
            .await?;
            drop(silent);
            Ok(())
        })
    })
}

#[test]
fn a_portal_without_endpoints_refuses_at_once() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            stage.service("web", cluster_ip(1), Tcp, &[])?;
            stage.service("web6", cluster_ip_v6(1), Tcp, &[])?;
            for to in [web(), SocketAddr::new(cluster_ip_v6(1), 80)] {
                ensure!(
                    how_it_ends(to).await? == ErrorKind::ConnectionRefused,
                    "{to}"
                );
            }
            Ok(())
        })
    })
}

#[test]
fn the_listener_refuses_who_does_not_come_through_a_portal() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let counters = stage.counters();
            let listeners: Vec<SocketAddr> = stage.forwarder.listen_addrs().map(|a| a.0).collect();
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            for listener in &listeners {
                let end = how_it_ends(*listener).await?;
                ensure!(
                    end == ErrorKind::ConnectionRefused,
                    "rules protect {listener}"
                );
            }
            ensure!(counters.refused(Refused::NotThroughPortal) == 0);

            stage.protect_listener = false;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            for listener in &listeners {
                let end = how_it_ends(*listener).await?;
                ensure!(end == ErrorKind::ConnectionReset, "{listener}: {end:?}");
            }
            eventually("both are counted", || {
                counters.refused(Refused::NotThroughPortal) == 2
            })
            .await?;
            Ok(())
        })
    })
}

#[test]
fn a_rule_that_is_ahead_of_the_portals_leads_to_a_refusal() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let destinations = stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let port = destinations
                .ports
                .values()
                .next()
                .copied()
                .unwrap_or_default();
            let stray = format!(
                "*nat\n-A OUTPUT -d 10.96.0.9 -p tcp -j DNAT --to-destination {INTERCEPT_V4}:{port}\nCOMMIT\n"
            );
            edgemesh_lab::Program::new("iptables-nft-restore")
                .arg("--noflush")
                .input(stray)
                .run()?;
            let end = how_it_ends(SocketAddr::new(cluster_ip(9), 80)).await?;
            ensure!(end == ErrorKind::ConnectionReset);
            let counters = stage.counters();
            eventually("it is counted", || counters.refused(Refused::NoPortal) == 1).await?;
            Ok(())
        })
    })
}

#[test]
fn a_connection_survives_every_change_of_its_service() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _first = Echo::start(endpoint(1)).await?;
            let _second = Echo::start(endpoint(2)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let mut stream = connect(web()).await?;
            let mut say = async |text: &[u8; 4]| {
                stream.write_all(text).await?;
                let mut answer = [0; 4];
                timeout(PATIENCE, stream.read_exact(&mut answer)).await??;
                ensure!(answer == *text);
                anyhow::Ok(())
            };
            say(b"mine").await?;
            stage.service("other", cluster_ip(2), Tcp, &[endpoint(2)])?;
            say(b"more").await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1), endpoint(2)])?;
            say(b"both").await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(2)])?;
            say(b"gone").await?;
            stage.service("web", cluster_ip(1), Tcp, &[])?;
            say(b"none").await?;
            stage.remove("web")?;
            say(b"last").await?;
            Ok(())
        })
    })
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let echoes = [
                Echo::start(endpoint(1)).await?,
                Echo::start(endpoint(2)).await?,
            ];
            let both = [endpoint(1), endpoint(2)];
            let hour = Some(Duration::from_secs(3600));
            stage.service_with_affinity("web", cluster_ip(1), Tcp, &both, hour)?;
            for n in 1..=2 {
                for _ in 0..5 {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(stage::client(n))?;
                    let mut stream = timeout(PATIENCE, socket.connect(web())).await??;
                    stream.write_all(b"x").await?;
                    timeout(PATIENCE, stream.read_exact(&mut [0])).await??;
                }
            }
            let served = echoes.each_ref().map(Echo::served);
            ensure!(served == [5, 5], "{served:?}");
            Ok(())
        })
    })
}

#[test]
fn at_the_limit_connections_wait_and_are_refused_when_no_place_comes_free() -> Result<()> {
    edgemesh_lab::test(|_| {
        let settings = Settings {
            max_connections: 2,
            admission_wait: Duration::from_secs(1),
            ..settings()
        };
        run(&settings, async |stage| {
            let _echo = Echo::start(endpoint(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let counters = stage.counters();
            let held = [connect(web()).await?, connect(web()).await?];
            eventually("both are served", || counters.active_connections() == 2).await?;
            ensure!(how_it_ends(web()).await? == ErrorKind::ConnectionReset);
            eventually("it is counted", || counters.refused(Refused::Limit) == 1).await?;

            let waiting = exchange(web(), b"patient");
            let free = async {
                eventually("one waits", || counters.waiting_connections() == 1).await?;
                drop(held);
                anyhow::Ok(())
            };
            let (answer, freed) = tokio::join!(waiting, free);
            freed?;
            ensure!(answer? == b"patient");
            ensure!(exchange(web(), b"again").await? == b"again");
            ensure!(counters.refused(Refused::Limit) == 1);
            Ok(())
        })
    })
}

#[test]
fn a_client_that_vanishes_ends_the_dialling() -> Result<()> {
    edgemesh_lab::test(|_| {
        let settings = Settings {
            dial_timeout: Duration::from_secs(600),
            dial_deadline: Duration::from_secs(600),
            ..settings()
        };
        run(&settings, async |stage| {
            let silent = silent_listener(endpoint(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let counters = stage.counters();
            let client = connect(web()).await?;
            eventually("it is dialled", || counters.active_connections() == 1).await?;
            client.set_zero_linger()?;
            drop(client);
            eventually("dialling ends", || counters.active_connections() == 0).await?;
            drop(silent);
            Ok(())
        })
    })
}

#[test]
fn a_drain_lets_connections_end_and_cuts_those_that_do_not() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&settings(), async |stage| {
            let _echo = Echo::start(endpoint(1)).await?;
            stage.service("web", cluster_ip(1), Tcp, &[endpoint(1)])?;
            let counters = stage.counters();
            let mut ends = connect(web()).await?;
            let mut stays = connect(web()).await?;
            eventually("both are served", || counters.active_connections() == 2).await?;
            let mut fresh = edgemesh_forward::Forwarder::bind(&Settings {
                intercept_v6: None,
                ..settings()
            })?;
            ensure!(
                fresh.listen_addrs().next() != stage.forwarder.listen_addrs().next(),
                "a taken port is not shared"
            );
            std::mem::swap(&mut fresh, &mut stage.forwarder);
            let drain = fresh.drain(Duration::from_secs(2));
            let client = async {
                ends.write_all(b"bye").await?;
                ends.shutdown().await?;
                let mut answer = Vec::new();
                ends.read_to_end(&mut answer).await?;
                ensure!(answer == b"bye");
                let end = stays.read(&mut [0]).await;
                ensure!(end.unwrap_err().kind() == ErrorKind::ConnectionReset);
                Ok(())
            };
            let (drained, client) = tokio::join!(drain, client);
            client?;
            ensure!(drained == Drained { cut: 1 });
            Ok(())
        })
    })
}

//! Endpoints of other nodes, reached through a real tunnel between nodes of this process.

#[allow(dead_code, reason = "shared with tests that need all of it")]
mod stage;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::Protocol::{self, Tcp, Udp};
use edgemesh_catalog::{Change, MeshNode, Node, NodeName};
use edgemesh_forward::{DialFault, FlowEnded, Settings};
use edgemesh_lab::Program;
use edgemesh_plan::{Exits, Reachability};
use edgemesh_tunnel::{NodeKey, Running, Tunnel};
use stage::{OWN_NODE, PATIENCE, Stage, client, cluster_ip, endpoint, policy_of, settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const MIB: usize = 1 << 20;

fn web() -> SocketAddr {
    SocketAddr::new(cluster_ip(1), 80)
}

/// The tunnel of one node.
struct Member {
    tunnel: Tunnel,
    running: Running,
    exits: watch::Sender<Arc<Exits>>,
}

/// This node with its forwarder, and others at the other ends of its tunnel.
struct Mesh<'s> {
    stage: &'s mut Stage,
    keys: BTreeMap<NodeName, NodeKey>,
    members: BTreeMap<NodeName, Member>,
}

impl Mesh<'_> {
    /// Starts the tunnel of `name` again or for the first time, with the same key.
    async fn join(&mut self, name: &str) -> Result<()> {
        let node = NodeName::new(name);
        let number = self.keys.len() as u8 + 1;
        let key = self
            .keys
            .entry(node.clone())
            .or_insert_with(NodeKey::generate)
            .clone();
        let member = start(&node, key, number).await?;
        self.add(node, member);
        Ok(())
    }

    /// Makes a member known to all.
    fn add(&mut self, node: NodeName, member: Member) {
        self.stage.fold.apply(Change::Node(Node {
            name: node.clone(),
            zone: None,
            pod_cidrs: vec![],
            addresses: vec![],
            labels: Default::default(),
        }));
        self.stage.fold.apply(Change::MeshNode(MeshNode {
            name: node.clone(),
            uid: None,
            public_key: self.keys[&node].public(),
            name_signature: Some(Box::new(self.keys[&node].sign_name(&node))),
            addresses: member.tunnel.listening_at(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: vec![],
            probe: None,
            version: "".into(),
            boot_id: member.tunnel.boot_id().into(),
            previous_key: None,
        }));
        self.members.insert(node, member);
        self.tell();
    }

    /// Ends the tunnel of `name`, as an agent that stops does.
    async fn leave(&mut self, name: &str) -> Result<()> {
        let member = self.members.remove(&NodeName::new(name));
        let member = member.context("no such member")?;
        member.running.shut_down(Duration::ZERO).await;
        Ok(())
    }

    /// Tells all nodes what the cluster is like.
    fn tell(&self) {
        for (node, member) in &self.members {
            let exits = Exits::new(self.stage.fold.catalog(), policy_of(node.clone()));
            member.exits.send_replace(Arc::new(exits));
        }
    }

    /// The Service `default/web` with these endpoints, each on the node beside it; all
    /// members are peers by then.
    async fn web(&mut self, protocol: Protocol, endpoints: &[(SocketAddr, &str)]) -> Result<()> {
        let own = self.members.get(&NodeName::new(OWN_NODE));
        let mut reachability = own.context("no own tunnel")?.tunnel.reachability();
        let wanted = self.keys.len() - 1;
        let known = |known: &Reachability| known.peers().count() >= wanted;
        timeout(PATIENCE, reachability.wait_for(known)).await??;
        self.stage.reachability = reachability.borrow().clone();
        self.place(endpoints);
        let addresses: Vec<SocketAddr> = endpoints.iter().map(|(address, _)| *address).collect();
        self.stage
            .service("web", cluster_ip(1), protocol, &addresses)?;
        self.tell();
        Ok(())
    }

    fn place(&mut self, endpoints: &[(SocketAddr, &str)]) {
        self.stage.elsewhere = endpoints
            .iter()
            .map(|(address, node)| (*address, NodeName::new(*node)))
            .collect();
    }
}

/// Starts a tunnel at `10.1.200.NUMBER`.
async fn start(node: &NodeName, key: NodeKey, number: u8) -> Result<Member> {
    let nothing = Exits::new(Default::default(), policy_of(node.clone()));
    let (exits, seen) = watch::channel(Arc::new(nothing));
    let mut settings = edgemesh_tunnel::Settings::of(node.clone());
    settings.bind = vec![[10, 1, 200, number].into()];
    settings.listen_port = 0;
    let (tunnel, running) = Tunnel::start(settings, key, seen).await?;
    Ok(Member {
        tunnel,
        running,
        exits,
    })
}

/// Runs `body` on a node whose tunnel leads to `others`.
fn run(others: &[&str], body: impl AsyncFnOnce(&mut Mesh<'_>) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Where the tunnels are, which the forwarder has to know before it makes its own.
        Program::new("ip")
            .args(["route", "add", "local", "10.1.200.0/24", "dev", "lo"])
            .run()?;
        let own = NodeName::new(OWN_NODE);
        let key = NodeKey::generate();
        let member = start(&own, key.clone(), 1).await?;
        let mut stage = Stage::new(&Settings {
            tunnel: Some(member.tunnel.clone()),
            ..settings()
        })?;
        let mut mesh = Mesh {
            stage: &mut stage,
            keys: BTreeMap::from([(own.clone(), key)]),
            members: BTreeMap::new(),
        };
        mesh.add(own, member);
        for other in others {
            mesh.join(other).await?;
        }
        body(&mut mesh).await
    })
}

/// An endpoint that sends back whatever comes, until its client ends the stream.
fn echo(at: SocketAddr, tasks: &mut JoinSet<()>) -> Result<()> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    Ok(())
}

async fn udp_echo(at: SocketAddr, tasks: &mut JoinSet<()>) -> Result<()> {
    let socket = UdpSocket::bind(at).await?;
    tasks.spawn(async move {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..n], from).await;
        }
    });
    Ok(())
}

/// Sends `text`, ends the stream, and returns all that comes back.
async fn exchange(to: SocketAddr, text: &[u8]) -> Result<Vec<u8>> {
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
    let (mut reader, mut writer) = stream.into_split();
    let send = async {
        writer.write_all(text).await?;
        writer.shutdown().await
    };
    let mut answer = Vec::new();
    let receive = reader.read_to_end(&mut answer);
    let both = async { tokio::try_join!(send, receive) };
    timeout(PATIENCE, both).await??;
    Ok(answer)
}

/// What a client sees of a connection that is refused.
async fn how_it_ends(to: SocketAddr) -> Result<ErrorKind> {
    match exchange(to, b"hello").await {
        Ok(answer) => anyhow::bail!("answered with {} bytes", answer.len()),
        Err(error) => Ok(error.downcast::<std::io::Error>()?.kind()),
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

#[test]
fn a_half_closed_request_gets_its_whole_answer_from_another_node() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let mut tasks = JoinSet::new();
            echo(endpoint(1), &mut tasks)?;
            mesh.web(Tcp, &[(endpoint(1), "cloud-1")]).await?;
            let sent = pattern(4 * MIB);
            ensure!(exchange(web(), &sent).await? == sent);
            let served = mesh.members[&NodeName::new("cloud-1")].tunnel.counters();
            ensure!(
                served.bytes_in() == sent.len() as u64,
                "it took another way"
            );
            Ok(())
        })
    })
}

#[test]
fn what_a_client_says_first_is_there_before_the_exit_is_heard() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            mesh.web(Tcp, &[(endpoint(1), "cloud-1")]).await?;
            let hear = async || {
                let (mut stream, _) = timeout(PATIENCE, listener.accept()).await??;
                let mut heard = [0; 5];
                timeout(PATIENCE, stream.read_exact(&mut heard)).await??;
                anyhow::Ok((stream, heard))
            };
            // The two nodes are connected from then on.
            let hear_once = async { hear().await.map(drop) };
            let (ended, heard) = tokio::join!(exchange(web(), b"hello"), hear_once);
            heard.and(ended)?;
            let cloud_is_mute = |action| {
                Program::new("iptables-nft")
                    .args([action, "INPUT", "-s", "10.1.200.2", "-j", "DROP"])
                    .run()
            };
            for speaks_at_once in [true, false] {
                cloud_is_mute("-I")?;
                let mut client = TcpStream::connect(web()).await?;
                if !speaks_at_once {
                    let served = mesh.members[&NodeName::new("cloud-1")].tunnel.counters();
                    while served.streams_in() == 0 {
                        sleep(Duration::from_millis(5)).await;
                    }
                }
                client.write_all(b"first").await?;
                let (mut stream, heard) = hear().await?;
                ensure!(&heard == b"first", "{heard:?}");
                cloud_is_mute("-D")?;
                stream.write_all(b"answer").await?;
                drop(stream);
                let mut answer = Vec::new();
                timeout(PATIENCE, client.read_to_end(&mut answer)).await??;
                ensure!(answer == b"answer", "{answer:?}");
                drop(client);
                let served = mesh.members[&NodeName::new("cloud-1")].tunnel.counters();
                while served.streams_in() > 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            Ok(())
        })
    })
}

#[test]
fn endpoints_here_and_there_have_their_turns() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let mut tasks = JoinSet::new();
            echo(endpoint(1), &mut tasks)?;
            echo(endpoint(2), &mut tasks)?;
            let endpoints = [(endpoint(1), OWN_NODE), (endpoint(2), "cloud-1")];
            mesh.web(Tcp, &endpoints).await?;
            for _ in 0..10 {
                ensure!(exchange(web(), b"hello").await? == b"hello");
            }
            let opened = mesh.members[&NodeName::new(OWN_NODE)].tunnel.counters();
            ensure!(opened.opened() == 5, "{} of 10 went there", opened.opened());
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_through_the_tunnel() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let listener = TcpListener::bind(endpoint(1)).await?;
            mesh.web(Tcp, &[(endpoint(1), "cloud-1")]).await?;
            let serve = async {
                let (mut stream, _) = listener.accept().await?;
                stream.read_exact(&mut [0; 5]).await?;
                stream.set_zero_linger()?;
                drop(stream);
                anyhow::Ok(())
            };
            let (served, ended) = tokio::join!(serve, how_it_ends(web()));
            served?;
            ensure!(ended? == ErrorKind::ConnectionReset);
            Ok(())
        })
    })
}

#[test]
fn what_the_exit_refuses_is_tried_at_the_next_endpoint() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1", "cloud-2"], async |mesh| {
            let mut tasks = JoinSet::new();
            echo(endpoint(1), &mut tasks)?;
            echo(endpoint(2), &mut tasks)?;
            let endpoints = [(endpoint(1), "cloud-1"), (endpoint(2), "cloud-2")];
            mesh.web(Tcp, &endpoints).await?;
            // cloud-1 has not heard of the Service yet.
            let behind = &mesh.members[&NodeName::new("cloud-1")];
            let unaware = Exits::new(
                without_services(&mesh.stage.fold),
                policy_of(NodeName::new("cloud-1")),
            );
            behind.exits.send_replace(Arc::new(unaware));
            for _ in 0..6 {
                ensure!(exchange(web(), b"hello").await? == b"hello");
            }
            ensure!(mesh.stage.counters().dials_failed(DialFault::NotAnEndpoint) >= 1);
            Ok(())
        })
    })
}

fn without_services(fold: &edgemesh_catalog::Fold) -> edgemesh_catalog::Catalog {
    let mut fold = fold.clone();
    fold.replace_services([]);
    fold.catalog()
}

#[test]
fn a_node_that_is_gone_is_passed_over_and_serves_again_soon_after_it_is_back() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1", "cloud-2"], async |mesh| {
            let mut tasks = JoinSet::new();
            echo(endpoint(1), &mut tasks)?;
            echo(endpoint(2), &mut tasks)?;
            let both = [(endpoint(1), "cloud-1"), (endpoint(2), "cloud-2")];
            mesh.web(Tcp, &both).await?;
            ensure!(exchange(web(), b"hello").await? == b"hello");
            mesh.leave("cloud-1").await?;
            for _ in 0..20 {
                ensure!(exchange(web(), b"hello").await? == b"hello");
            }

            mesh.web(Tcp, &both[..1]).await?;
            ensure!(how_it_ends(web()).await? == ErrorKind::ConnectionReset);
            mesh.join("cloud-1").await?;
            let served_again = async {
                while exchange(web(), b"hello").await.is_err() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let back = Instant::now();
            timeout(PATIENCE, served_again).await?;
            println!("served again after {:?}", back.elapsed());
            Ok(())
        })
    })
}

#[test]
fn datagrams_of_every_size_pass_whole_to_another_node_and_back() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let mut tasks = JoinSet::new();
            udp_echo(endpoint(1), &mut tasks).await?;
            mesh.web(Udp, &[(endpoint(1), "cloud-1")]).await?;
            let socket = UdpSocket::bind(client(1)).await?;
            socket.connect(web()).await?;
            let mut answer = vec![0; 65536];
            for size in [0, 1, 512, 1200, 1472, 4096, 9000, 65_507] {
                let sent = pattern(size);
                socket.send(&sent).await?;
                let n = timeout(PATIENCE, socket.recv(&mut answer))
                    .await
                    .with_context(|| format!("no answer to {size} bytes"))??;
                ensure!(answer[..n] == sent, "{size} bytes came back as {n}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_flow_moves_when_its_endpoint_is_reached_by_another_way() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(&["cloud-1"], async |mesh| {
            let mut tasks = JoinSet::new();
            udp_echo(endpoint(1), &mut tasks).await?;
            // As before any MeshNode was known.
            mesh.place(&[(endpoint(1), "cloud-1")]);
            mesh.stage
                .service("web", cluster_ip(1), Udp, &[endpoint(1)])?;
            let socket = UdpSocket::bind(client(1)).await?;
            socket.connect(web()).await?;
            let mut answer = [0; 16];
            socket.send(b"native").await?;
            timeout(PATIENCE, socket.recv(&mut answer)).await??;

            mesh.web(Udp, &[(endpoint(1), "cloud-1")]).await?;
            let counters = mesh.stage.counters();
            stage::eventually("the native flow ends", || {
                counters.udp_flows_ended(FlowEnded::EndpointGone) == 1
            })
            .await?;
            socket.send(b"tunnel").await?;
            timeout(PATIENCE, socket.recv(&mut answer)).await??;
            let served = mesh.members[&NodeName::new("cloud-1")].tunnel.counters();
            ensure!(served.datagrams_in() == 1);
            Ok(())
        })
    })
}

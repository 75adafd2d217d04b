//! A relay, or somebody on the way to it, that lies, loses or repeats: it can delay, nothing
//! else.

mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_catalog::{Change, MeshNode, NodeName, Protocol::Tcp};
use edgemesh_sockets::ResetOnDrop;
use edgemesh_tunnel::{LinkStatus, Path, RelayAddress, RelayNode, RelaySettings};
use stage::tcp::open;
use stage::{Cluster, Member, PATIENCE, endpoint, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Where the relay is, and where others are told that it is.
const RELAY: ([u8; 4], u16) = ([10, 1, 210, 1], 20_006);
const ON_THE_WAY: ([u8; 4], u16) = ([10, 1, 210, 2], 20_006);

/// What somebody on the way to the relay does with what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Treatment {
    Honest,
    /// A bit of every few thousand bytes is turned around.
    Lies,
    /// Every few pieces one is lost.
    Loses,
    /// Every piece comes twice.
    Repeats,
    /// Nothing passes, but nobody is told.
    Swallows,
}

/// Somebody on the way.
struct Tamperer {
    treatment: Arc<AtomicU8>,
    _tasks: JoinSet<()>,
}

impl Tamperer {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(ON_THE_WAY)).await?;
        let treatment = Arc::new(AtomicU8::new(Treatment::Honest as u8));
        let of_all = Arc::clone(&treatment);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let treatment = Arc::clone(&of_all);
                connections.spawn(async move {
                    let Ok(relay) = TcpStream::connect(SocketAddr::from(RELAY)).await else {
                        return;
                    };
                    let ((from_client, to_client), (from_relay, to_relay)) =
                        (client.into_split(), relay.into_split());
                    tokio::select! {
                        () = pass(from_client, to_relay, &treatment) => {}
                        () = pass(from_relay, to_client, &treatment) => {}
                    }
                });
            }
        });
        Ok(Self {
            treatment,
            _tasks: tasks,
        })
    }

    fn treat(&self, treatment: Treatment) {
        self.treatment.store(treatment as u8, Ordering::Relaxed);
    }
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, treatment: &AtomicU8) {
    let mut buffer = vec![0; 4096];
    for piece in 0_u32.. {
        let Ok(n @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let now = treatment.load(Ordering::Relaxed);
        let mut times = 1;
        if now == Treatment::Lies as u8 {
            buffer[n / 2] ^= 0x10;
        } else if now == Treatment::Repeats as u8 {
            times = 2;
        } else if (now == Treatment::Loses as u8 && piece % 5 == 4)
            || now == Treatment::Swallows as u8
        {
            times = 0;
        }
        for _ in 0..times {
            if to.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    }
}

/// Two nodes that see each other through a relay only, with an endpoint on the far one.
async fn relayed(cluster: &mut Cluster) -> Result<(Member, Member, Member)> {
    let way = RelayAddress::new(SocketAddr::from(ON_THE_WAY)).context("an address")?;
    let relay = cluster
        .join_with("relay", |settings| {
            settings.relay = Some(RelaySettings {
                listen: SocketAddr::from(RELAY),
                discovery: SocketAddr::from((RELAY.0, 20_009)),
                ..RelaySettings::default()
            });
            settings.relay_nodes = vec![RelayNode {
                node: NodeName::new("relay"),
                addresses: vec![way],
            }];
        })
        .await?;
    publish(cluster, &relay, |said| said.relay_server.is_some()).await?;
    let near = cluster.join("near").await?;
    let far = cluster.join("far").await?;
    for (one, other) in [(&near, &far), (&far, &near)] {
        let (from, to) = (one.address(), other.address());
        edgemesh_lab::Program::new("iptables-nft")
            .args(["-A", "INPUT", "-p", "udp", "-s", &from, "-d", &to])
            .args(["-j", "DROP"])
            .run()?;
    }
    cluster.service("web", Tcp, &[(endpoint(1), &far)]);
    for member in [&near, &far] {
        member.knows(&relay).await?;
        publish(cluster, member, |said| said.relay_url.is_some()).await?;
    }
    near.knows(&far).await?;
    Ok((relay, near, far))
}

/// Makes known what the member says of itself, once it is what is waited for.
async fn publish(
    cluster: &mut Cluster,
    member: &Member,
    wanted: impl Fn(&MeshNode) -> bool,
) -> Result<()> {
    let mut record = member.tunnel.own_record();
    let is_wanted = |said: &Option<MeshNode>| said.as_ref().is_some_and(&wanted);
    let said = timeout(PATIENCE, record.wait_for(is_wanted))
        .await??
        .clone();
    let mut said = said.context("it was waited for")?;
    // All nodes share one host here; what one may tell of it is not what is to be proved.
    said.addresses = member.tunnel.listening_at();
    cluster.apply(Change::MeshNode(said));
    Ok(())
}

/// An exchange of 64 KiB with the endpoint, which sends everything back.
async fn exchange(near: &Member, far: &Member, seed: u8) -> Result<Result<(), String>> {
    let sent: Vec<u8> = (0..1_u32 << 16)
        .map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed)
        .collect();
    let opened = open(&near.tunnel, far);
    let stream = match timeout(Duration::from_secs(3), opened).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(fault)) => return Ok(Err(fault.to_string())),
        Err(_) => return Ok(Err("not opened".to_owned())),
    };
    let listener = TcpListener::bind("10.1.9.1:0").await?;
    let mut client = TcpStream::connect(listener.local_addr()?).await?;
    let (inside, _) = listener.accept().await?;
    let mut carrying = JoinSet::new();
    carrying.spawn(async move { stream.carry(ResetOnDrop::new(inside), |_, _| {}).await });
    let (mut reader, mut writer) = client.split();
    let mut received = Vec::new();
    let both = async {
        tokio::try_join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            reader.read_to_end(&mut received)
        )
    };
    let ended = timeout(Duration::from_secs(5), both).await;
    ensure!(
        sent.starts_with(&received),
        "what came is not what was sent, after {} bytes",
        received.len()
    );
    match ended {
        Ok(Ok(_)) if received.len() == sent.len() => Ok(Ok(())),
        Ok(Ok(_)) => bail!("cut after {} bytes, and it looks whole", received.len()),
        Ok(Err(error)) => Ok(Err(error.to_string())),
        Err(_) => Ok(Err("slow".to_owned())),
    }
}

#[test]
fn what_a_relay_does_to_packets_can_only_delay() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let tamperer = Tamperer::start().await?;
            let _echo = echo().await?;
            let (_relay, near, far) = relayed(cluster).await?;
            exchange(&near, &far, 0)
                .await?
                .map_err(anyhow::Error::msg)
                .context("through an honest relay")?;
            ensure!(
                near.tunnel.peers().iter().any(|peer| matches!(
                    &peer.link,
                    LinkStatus::Up {
                        path: Some(Path::Relayed(_)),
                        ..
                    }
                )),
                "it is not relayed: {:?}",
                near.tunnel.peers()
            );
            for (seed, treatment) in (1..).zip([
                Treatment::Lies,
                Treatment::Loses,
                Treatment::Repeats,
                Treatment::Swallows,
            ]) {
                tamperer.treat(treatment);
                // It may work or not; what comes is right, and ends when it says so.
                let during = exchange(&near, &far, seed)
                    .await
                    .with_context(|| format!("{treatment:?}"))?;
                println!("{treatment:?}: {during:?}");
                tamperer.treat(Treatment::Honest);
                let again = async {
                    while exchange(&near, &far, seed).await?.is_err() {
                        sleep(Duration::from_millis(100)).await;
                    }
                    anyhow::Ok(())
                };
                timeout(2 * PATIENCE, again)
                    .await
                    .with_context(|| format!("after {treatment:?}"))??;
            }
            Ok(())
        })
    })
}

async fn echo() -> Result<JoinSet<()>> {
    let listener = TcpListener::bind(endpoint(1)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    Ok(tasks)
}

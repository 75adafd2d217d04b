//! TCP clients and endpoints at the two ends of a tunnel.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use edgemesh_catalog::Protocol::Tcp;
use edgemesh_sockets::{ResetOnDrop, look_at};
use edgemesh_tunnel::{Broken, FirstBytes, OpenFault, Tunnel, TunnelStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Cluster, Member, PATIENCE, endpoint, target};

/// Bytes that tell when one of them is missing, doubled or in the wrong place.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8)
        .collect()
}

/// An endpoint that sends back whatever comes, until its client ends the stream.
pub(crate) struct Echo {
    _tasks: JoinSet<()>,
}

impl Echo {
    /// At this address.
    pub(crate) async fn start(at: SocketAddr) -> Result<Self> {
        let socket = match at {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(at).context("an endpoint")?;
        // As many as any test connects at once: what does not fit has to come again, and a
        // second later that may not fit either.
        let listener = socket.listen(4096).context("an endpoint")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        Ok(Self { _tasks: tasks })
    }
}

/// A client that has connected, for whom no stream was opened yet.
pub(crate) struct Client {
    pub(crate) client: TcpStream,
    pub(crate) near: TcpStream,
    /// What it says first.
    pub(crate) first: FirstBytes,
}

impl Client {
    /// It says nothing yet.
    pub(crate) async fn silent() -> Result<Self> {
        let listener = TcpListener::bind("10.1.9.1:0").await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        let (near, _) = listener.accept().await?;
        Ok(Self {
            client,
            near,
            first: FirstBytes::awaited(),
        })
    }

    /// It has said `first`.
    pub(crate) async fn that_said(first: &[u8]) -> Result<Self> {
        let mut client = Self::silent().await?;
        client.says(first).await?;
        Ok(client)
    }

    /// It says its first bytes, which are heard.
    pub(crate) async fn says(&mut self, first: &[u8]) -> Result<()> {
        self.client.write_all(first).await?;
        self.near.readable().await?;
        let heard = look_at(&self.near, FirstBytes::MOST).context("it spoke")?;
        self.first.came(heard);
        Ok(())
    }

    /// A stream to an endpoint of `default/web` on `far`.
    pub(crate) fn open(
        &self,
        tunnel: &Tunnel,
        far: &Member,
        at: SocketAddr,
    ) -> impl Future<Output = Result<TunnelStream, OpenFault>> + Send + 'static {
        tunnel.open_tcp(&far.name, target("web", Tcp, at), self.first.clone())
    }
}

/// A client's connection, carried by the tunnel.
pub(crate) struct Carried {
    pub(crate) client: TcpStream,
    carrying: JoinSet<Result<(), Broken>>,
}

impl Carried {
    /// By `stream`.
    pub(crate) async fn over(stream: TunnelStream) -> Result<Self> {
        Ok(Self::of(Client::silent().await?, stream))
    }

    /// `client`'s, by `stream`.
    pub(crate) fn of(client: Client, stream: TunnelStream) -> Self {
        let Client { client, near, .. } = client;
        let mut carrying = JoinSet::new();
        carrying.spawn(async move { stream.carry(ResetOnDrop::new(near), |_, _| {}).await });
        Self { client, carrying }
    }

    /// How it ended.
    pub(crate) async fn ended(&mut self) -> Result<Result<(), Broken>> {
        let ended = timeout(PATIENCE, self.carrying.join_next()).await?;
        Ok(ended.context("it was carried once")??)
    }
}

/// A Service `default/web` whose endpoint 1 is on `far`.
pub(crate) async fn two_nodes(cluster: &mut Cluster) -> Result<(Member, Member)> {
    let near = cluster.join("near").await?;
    let far = cluster.join("far").await?;
    cluster.service("web", Tcp, &[(endpoint(1), &far)]);
    near.knows(&far).await?;
    Ok((near, far))
}

/// A stream to endpoint 1 of `default/web`.
pub(crate) async fn open(tunnel: &Tunnel, far: &Member) -> Result<TunnelStream, OpenFault> {
    tunnel
        .open_tcp(
            &far.name,
            target("web", Tcp, endpoint(1)),
            FirstBytes::default(),
        )
        .await
}

/// Sends `sent`, ends the stream, and returns all that comes back.
pub(crate) async fn exchange(tunnel: &Tunnel, far: &Member, sent: &[u8]) -> Result<Vec<u8>> {
    let carried = Carried::over(open(tunnel, far).await?).await?;
    send_and_hear(carried, sent).await
}

/// As [`exchange`], by a client that has spoken before the stream is opened.
pub(crate) async fn exchange_at_once(
    tunnel: &Tunnel,
    far: &Member,
    sent: &[u8],
) -> Result<Vec<u8>> {
    let client = Client::that_said(sent).await?;
    let opened = client.open(tunnel, far, endpoint(1)).await?;
    send_and_hear(Carried::of(client, opened), b"").await
}

/// Sends `sent`, ends the stream, and returns all that comes back.
pub(crate) async fn send_and_hear(mut carried: Carried, sent: &[u8]) -> Result<Vec<u8>> {
    let (mut reader, mut writer) = carried.client.split();
    let send = async {
        writer.write_all(sent).await?;
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    let mut received = Vec::new();
    let (sent, read) = tokio::join!(send, reader.read_to_end(&mut received));
    sent?;
    read?;
    match carried.ended().await? {
        Ok(()) => Ok(received),
        Err(broken) => bail!("{broken:?}"),
    }
}

/// Files that this process has open.
pub(crate) fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

//! A relay on loopback, for tests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{Change, Fold, MeshNode, Node, NodeName};
use iroh::RelayUrl;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::identity::NodeKey;
use crate::peer_book::{PeerBook, Peers};
use crate::relay_address::RelayAddress;
use crate::relay_counters::RelayCounters;
use crate::relay_server::{OpenRelay, RelayServer, RelaySettings};

/// Any port.
pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A relay that runs, with the peers that are told to it.
pub(crate) struct Relay {
    pub(crate) at: OpenRelay,
    pub(crate) key: NodeKey,
    pub(crate) counters: Arc<RelayCounters>,
    pub(crate) peers: watch::Sender<Arc<Peers>>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Relay {
    /// A relay for these.
    pub(crate) async fn start(peers: &[&NodeKey]) -> Self {
        let peers: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(at, key)| mesh_node(&format!("node-{at}"), key))
            .collect();
        Self::start_for(NodeKey::generate(), believed(&peers)).await
    }

    /// The relay of the node with `key`.
    pub(crate) async fn start_for(key: NodeKey, peers: Peers) -> Self {
        let settings = RelaySettings {
            listen: LOOPBACK,
            discovery: LOOPBACK,
            ..RelaySettings::default()
        };
        let counters = Arc::new(RelayCounters::default());
        let server = RelayServer::new(settings, key.clone(), Arc::clone(&counters));
        let mut open = server.open();
        let (peers, following) = watch::channel(Arc::new(peers));
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(server.run(following, stop.clone()));
        let at = open.wait_for(Option::is_some).await.unwrap().unwrap();
        Self {
            at,
            key,
            counters,
            peers,
            stop,
            task,
        }
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

/// What a node says that has nothing but a key.
pub(crate) fn mesh_node(name: &str, key: &NodeKey) -> MeshNode {
    MeshNode {
        name: NodeName::new(name),
        uid: None,
        public_key: key.public(),
        name_signature: Some(Box::new(key.sign_name(&NodeName::new(name)))),
        addresses: Vec::new(),
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "".into(),
        boot_id: "".into(),
        previous_key: None,
    }
}

/// The peers of a node "own", when these and their Nodes are all there is.
pub(crate) fn believed(mesh_nodes: &[MeshNode]) -> Peers {
    let mut fold = Fold::default();
    for mesh_node in mesh_nodes {
        fold.apply(Change::Node(Node {
            name: mesh_node.name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: Default::default(),
        }));
        fold.apply(Change::MeshNode(mesh_node.clone()));
    }
    PeerBook::default().follow(&fold.catalog(), &NodeName::new("own"), &[])
}

/// What passes on connections to a relay, and delays them.
pub(crate) struct Link {
    pub(crate) address: RelayAddress,
    tasks: JoinSet<()>,
}

impl Link {
    /// Passes on to a relay what comes at the address that it has then.
    pub(crate) async fn to(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = RelayAddress::new(listener.local_addr().unwrap()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    sleep(delay).await;
                    if let Ok(mut relay) = TcpStream::connect(to).await {
                        let _ = copy_bidirectional(&mut client, &mut relay).await;
                    }
                });
            }
        });
        Self { address, tasks }
    }

    pub(crate) fn url(&self) -> RelayUrl {
        self.address.url().unwrap()
    }

    /// The line is cut, as seen from both ends.
    pub(crate) async fn cut(mut self) {
        self.tasks.shutdown().await;
    }
}

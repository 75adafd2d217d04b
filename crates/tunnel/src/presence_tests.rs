use std::time::Duration;

use edgemesh_catalog::{Change, Fold, Node};
use edgemesh_plan::Policy;
use iroh::address_lookup::MemoryLookup;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::endpoint_options::{EndpointOptions, bind_endpoint};
use crate::peer_book::PeerBook;
use crate::relay_address::RelayAddress;
use crate::relay_stage::{LOOPBACK, Link};

const ALPN: &[u8] = b"test";
/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A node that can be reached by relays only.
struct Member {
    node: NodeName,
    endpoint: Endpoint,
    presence: Presence,
    peers: watch::Sender<Arc<Peers>>,
    _exits: watch::Sender<Arc<Exits>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Member {
    async fn start(name: &str, relay: Option<RelaySettings>, relay_nodes: &[RelayNode]) -> Self {
        let (node, key) = (NodeName::new(name), NodeKey::generate());
        let trust = RelayTrust::default();
        let endpoint = bind_endpoint(&EndpointOptions {
            key: key.clone(),
            alpns: vec![ALPN.to_vec()],
            bind: Vec::new(),
            port: 0,
            advertise: Vec::new(),
            lookup: MemoryLookup::new(),
            trust: trust.clone(),
            relay_dialer: None,
        })
        .await
        .unwrap();
        let policy = Policy::of(node.clone());
        let exits = Exits::new(cluster_of(&node).catalog(), policy);
        let exits = watch::Sender::new(Arc::new(exits));
        let peers = watch::Sender::new(Arc::new(Peers::default()));
        let options = PresenceOptions {
            node: node.clone(),
            key,
            endpoint: endpoint.clone(),
            trust,
            dialer: None,
            relay_nodes: relay_nodes.to_vec(),
            relay,
            lanes: None,
            advertise: Vec::new(),
            never: Vec::new(),
            version: "1".into(),
            boot_id: "b".into(),
            peers: peers.subscribe(),
            exits: exits.subscribe(),
        };
        let stop = CancellationToken::new();
        let (presence, named) = Presence::new(options, &stop);
        let mut tasks = JoinSet::new();
        for (_, task) in named {
            tasks.spawn(task);
        }
        Self {
            node,
            endpoint,
            presence,
            peers,
            _exits: exits,
            stop,
            tasks,
        }
    }

    /// What it says of itself once that is what is waited for.
    async fn says(&mut self, wanted: impl Fn(&MeshNode) -> bool) -> MeshNode {
        let is_wanted = |said: &Option<MeshNode>| said.as_ref().is_some_and(&wanted);
        let said = timeout(LONG, self.presence.own.wait_for(is_wanted)).await;
        said.expect("it says so").unwrap().clone().unwrap()
    }

    /// Believes what these nodes say.
    fn hears(&self, mesh_nodes: &[&MeshNode]) {
        let mut fold = Fold::default();
        for mesh_node in mesh_nodes {
            fold.apply(Change::Node(node(&mesh_node.name)));
            fold.apply(Change::MeshNode((*mesh_node).clone()));
        }
        let peers = PeerBook::default().follow(&fold.catalog(), &self.node, &[]);
        self.peers.send_replace(Arc::new(peers));
    }

    /// Connects with the node that says this, and waits until the two have agreed on it.
    async fn reaches(&self, other: &Self, said: &MeshNode) {
        let address = self.presence.book.get().address_of(said).unwrap();
        let accepted = async { other.endpoint.accept().await.unwrap().await.unwrap() };
        let connected = async { self.endpoint.connect(address, ALPN).await.unwrap() };
        let both = timeout(LONG, async { tokio::join!(connected, accepted) }).await;
        let (connection, _accepted) = both.expect("they reach each other");
        assert_eq!(connection.remote_id(), other.endpoint.id());
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.endpoint.close().await;
    }
}

fn node(name: &NodeName) -> Node {
    Node {
        name: name.clone(),
        zone: None,
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        labels: Default::default(),
    }
}

fn cluster_of(name: &NodeName) -> Fold {
    let mut fold = Fold::default();
    fold.apply(Change::Node(node(name)));
    fold
}

#[tokio::test]
async fn nodes_find_a_relay_and_each_other_and_the_relays_own_node_by_what_they_say() {
    let free = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let listen = free.local_addr().unwrap();
    drop(free);
    // As others see the relay, it has another address than as its own node does.
    let outside = Link::to(listen, Duration::ZERO).await;
    let list = [RelayNode {
        node: NodeName::new("cloud"),
        addresses: vec![outside.address],
    }];
    let relay = RelaySettings {
        listen,
        discovery: LOOPBACK,
        ..RelaySettings::default()
    };
    let mut cloud = Member::start("cloud", Some(relay), &list).await;
    let mut edge = Member::start("edge", None, &list).await;
    let mut other = Member::start("other", None, &list).await;

    let public = outside.url().to_string();
    let cloud_says = cloud
        .says(|said| said.relay_url.is_some() && said.relay_server.is_some())
        .await;
    assert_eq!(cloud_says.relay_url.as_deref(), Some(&*public));
    let server = cloud_says.relay_server.as_deref().unwrap();
    assert_eq!(server.urls, [public.as_str().into()]);
    assert_ne!(outside.address, RelayAddress::new(listen).unwrap());

    // Neither is let in before the relay believes it.
    let (edge_says, other_says) = (edge.says(|_| true).await, other.says(|_| true).await);
    cloud.hears(&[&edge_says, &other_says]);
    edge.hears(&[&cloud_says, &other_says]);
    other.hears(&[&cloud_says, &edge_says]);
    let edge_says = edge.says(|said| said.relay_url.is_some()).await;
    let other_says = other.says(|said| said.relay_url.is_some()).await;
    assert_eq!(edge_says.relay_url.as_deref(), Some(&*public));

    edge.reaches(&cloud, &cloud_says).await;
    cloud.reaches(&edge, &edge_says).await;
    edge.reaches(&other, &other_says).await;
    assert_eq!(cloud.presence.relay_counters.clients(), 3);
    for member in [edge, other, cloud] {
        member.end().await;
    }
}

use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_catalog::{MeshNode, NodeName};
use iroh::Endpoint;
use iroh::address_lookup::MemoryLookup;
use iroh::endpoint::{RecvStream, SendStream};
use tokio::sync::watch;

use super::*;
use crate::endpoint_options::{EndpointOptions, bind_endpoint};
use crate::identity::NodeKey;
use crate::peer_book::Peers;
use crate::relay_book::{RelayNode, Relays};
use crate::relay_counters::RelayCounters;
use crate::relay_server::{RelayServer, RelaySettings};
use crate::relay_stage::{LOOPBACK, believed, mesh_node};
use crate::relay_trust::RelayTrust;
use crate::relays::RelayKeeper;

const ALPN: &[u8] = b"test";
/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A relay that knows the others.
struct OneOfTwo {
    at: RelayAddress,
    counters: Arc<RelayCounters>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl OneOfTwo {
    async fn start(key: &NodeKey, listen: SocketAddr, book: &RelayBook, peers: &Peers) -> Self {
        let settings = RelaySettings {
            listen,
            discovery: LOOPBACK,
            ..RelaySettings::default()
        };
        let counters = Arc::new(RelayCounters::default());
        let server = RelayServer::new(settings, key.clone(), Arc::clone(&counters))
            .standing_in_for(book.clone());
        let mut open = server.open();
        let (told, peers) = watch::channel(Arc::new(peers.clone()));
        let stop = CancellationToken::new();
        let ending = stop.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _told = told;
            server.run(peers, ending).await;
        });
        let at = open.wait_for(Option::is_some).await.unwrap().unwrap();
        Self {
            at: RelayAddress::new(at.relay).unwrap(),
            counters,
            stop,
            task,
        }
    }

    async fn end(&mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

/// A node that can be reached by relays only.
struct Member {
    endpoint: Endpoint,
    book: RelayBook,
    detours: RelayDetours,
    tasks: JoinSet<()>,
}

impl Member {
    async fn start(key: &NodeKey, named: &[RelayNode], peers: &Peers) -> Self {
        let trust = RelayTrust::default();
        let dialer = RelayDialer::bind().await.unwrap();
        let endpoint = bind_endpoint(&EndpointOptions {
            key: key.clone(),
            alpns: vec![ALPN.to_vec()],
            bind: Vec::<IpAddr>::new(),
            port: 0,
            advertise: Vec::new(),
            lookup: MemoryLookup::new(),
            trust: trust.clone(),
            relay_dialer: Some(dialer.address()),
        })
        .await
        .unwrap();
        let (book, detours) = (RelayBook::new(), RelayDetours::new());
        let keeper = RelayKeeper {
            endpoint: endpoint.clone(),
            own: NodeName::new("own"),
            named: named.to_vec(),
            trust,
            book: book.clone(),
            detours: detours.clone(),
        };
        let peers = Arc::new(peers.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (_told, peers) = watch::channel(peers);
            let (_open, own_relay) = watch::channel(None);
            keeper.run(peers, own_relay, CancellationToken::new()).await;
        });
        tasks.spawn(dialer.run(book.clone(), detours.clone(), CancellationToken::new()));
        Self {
            endpoint,
            book,
            detours,
            tasks,
        }
    }

    /// The relay that it is to be found at.
    async fn home(&self) -> RelayAddress {
        self.endpoint.online().await;
        let home = self.endpoint.addr().relay_urls().next().cloned();
        RelayAddress::of_url(&home.unwrap()).unwrap()
    }

    async fn end(mut self) {
        self.endpoint.close().await;
        self.tasks.shutdown().await;
    }
}

/// Says something on a stream that is held, and hears it at the other end.
async fn say(send: &mut SendStream, receive: &mut RecvStream) {
    send.write_all(b"still there").await.unwrap();
    let mut heard = [0; 11];
    receive.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_on_while_another_relay_stands_in_and_when_the_first_is_back() {
    let keys = [(); 4].map(|()| NodeKey::generate());
    let nodes = ["first", "second", "one", "other"];
    let mesh_nodes: Vec<MeshNode> = nodes
        .iter()
        .zip(&keys)
        .map(|(node, key)| mesh_node(node, key))
        .collect();
    let peers = believed(&mesh_nodes);
    let book = RelayBook::new();
    let mut relays = [
        OneOfTwo::start(&keys[0], LOOPBACK, &book, &peers).await,
        OneOfTwo::start(&keys[1], LOOPBACK, &book, &peers).await,
    ];
    let named = [0, 1].map(|of| RelayNode {
        node: NodeName::new(nodes[of]),
        addresses: vec![relays[of].at],
    });
    book.set(Relays::new(&peers, &named, &NodeName::new("relay"), None));
    let one = Member::start(&keys[2], &named, &peers).await;
    let other = Member::start(&keys[3], &named, &peers).await;
    let home = timeout(LONG, other.home()).await.unwrap();
    let of = relays.iter().position(|relay| relay.at == home).unwrap();

    let mut says = mesh_node("other", &keys[3]);
    says.relay_url = Some(home.to_string().into());
    let address = one.book.get().address_of(&says).unwrap();
    let connect = async { one.endpoint.connect(address, ALPN).await.unwrap() };
    let accept = async { other.endpoint.accept().await.unwrap().await.unwrap() };
    let (here, there) = timeout(LONG, async { tokio::join!(connect, accept) })
        .await
        .unwrap();
    let mut send = here.open_uni().await.unwrap();
    send.write_all(b"-").await.unwrap();
    let mut receive = there.accept_uni().await.unwrap();
    receive.read_exact(&mut [0]).await.unwrap();

    relays[of].end().await;
    timeout(LONG, say(&mut send, &mut receive)).await.unwrap();
    assert_eq!(one.detours.stand_in(home), Some(relays[1 - of].at));
    assert!(relays[1 - of].counters.clients() > 0);

    relays[of] = OneOfTwo::start(&keys[of], home.socket_addr(), &book, &peers).await;
    let mut detours = one.detours.follow();
    let straight = detours.wait_for(|detours| !detours.contains_key(&home));
    timeout(LONG, straight).await.unwrap().unwrap();
    timeout(LONG, say(&mut send, &mut receive)).await.unwrap();

    one.end().await;
    other.end().await;
    for relay in &mut relays {
        relay.end().await;
    }
}

#[tokio::test]
async fn dialer_leads_nowhere_but_to_relays() {
    let dialer = RelayDialer::bind().await.unwrap();
    let elsewhere = TcpListener::bind(LOOPBACK).await.unwrap();
    let at = elsewhere.local_addr().unwrap();
    let address = dialer.address();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(dialer.run(RelayBook::new(), RelayDetours::new(), stop.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("GET http://{at}/ HTTP/1.1\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let read = timeout(LONG, client.read_to_end(&mut Vec::new())).await;
    assert_eq!(read.unwrap().unwrap(), 0);
    assert!(timeout(Duration::ZERO, elsewhere.accept()).await.is_err());
    stop.cancel();
    tasks.join_next().await;
}

use std::collections::BTreeMap;
use std::pin::pin;

use edgemesh_catalog::{Change, Fold, MeshNode, Node, NodeName};
use futures_util::{SinkExt, StreamExt};
use iroh::dns::DnsResolver;
use iroh_relay::client::{Client, ClientBuilder, ConnectError};
use iroh_relay::protos::relay::{ClientToRelayMsg, Datagrams, RelayToClientMsg};
use iroh_relay::quic::QuicClient;
use iroh_relay::tls::default_provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::peer_book::PeerBook;
use crate::relay_trust::RelayTrust;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A relay on loopback, with the peers that are told to it.
struct Relay {
    at: OpenRelay,
    key: NodeKey,
    counters: Arc<RelayCounters>,
    peers: watch::Sender<Arc<Peers>>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

fn on_loopback() -> RelaySettings {
    RelaySettings {
        listen: LOOPBACK,
        discovery: LOOPBACK,
        ..RelaySettings::default()
    }
}

impl Relay {
    async fn start(peers: &[&NodeKey]) -> Self {
        let key = NodeKey::generate();
        let counters = Arc::new(RelayCounters::default());
        let server = RelayServer::new(on_loopback(), key.clone(), Arc::clone(&counters));
        let mut open = server.open();
        let (peers, following) = watch::channel(Arc::new(believed(peers)));
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

    fn client(&self, key: &NodeKey) -> ClientBuilder {
        let url: iroh::RelayUrl = format!("http://{}", self.at.relay).parse().unwrap();
        ClientBuilder::new(url, key.secret().clone(), DnsResolver::new()).tls_client_config(
            RelayTrust::default()
                .tls()
                .client_config(default_provider())
                .unwrap(),
        )
    }

    async fn connect(&self, key: &NodeKey) -> Result<Client, ConnectError> {
        self.client(key).connect().await
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

/// Peers that are believed with these keys.
fn believed(keys: &[&NodeKey]) -> Peers {
    let mut fold = Fold::default();
    for (at, key) in keys.iter().enumerate() {
        let name = NodeName::new(format!("node-{at}"));
        fold.apply(Change::Node(Node {
            name: name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
        }));
        fold.apply(Change::MeshNode(MeshNode {
            name,
            uid: None,
            public_key: key.public(),
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            version: "".into(),
            boot_id: "".into(),
            previous_key: None,
        }));
    }
    PeerBook::default().follow(&fold.catalog(), &NodeName::new("own"), &[])
}

/// The next packet that comes; none when the relay ends the connection.
async fn packet(client: &mut Client) -> Option<Vec<u8>> {
    while let Some(message) = client.next().await {
        match message {
            Ok(RelayToClientMsg::Datagrams { datagrams, .. }) => {
                return Some(datagrams.contents.to_vec());
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

async fn send(from: &mut Client, to: &NodeKey, text: &'static str) {
    let message = ClientToRelayMsg::Datagrams {
        dst_endpoint_id: to.secret().public(),
        datagrams: Datagrams::from(text.as_bytes()),
    };
    from.send(message).await.unwrap();
}

/// What an HTTP client gets.
async fn answer(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn peers_reach_each_other_and_the_relays_own_node() {
    let (one, other) = (NodeKey::generate(), NodeKey::generate());
    let relay = Relay::start(&[&one, &other]).await;
    let mut at_one = relay.connect(&one).await.unwrap();
    let mut at_other = relay.connect(&other).await.unwrap();
    let mut at_relay = relay.connect(&relay.key).await.unwrap();
    send(&mut at_one, &other, "to the other").await;
    assert_eq!(packet(&mut at_other).await.unwrap(), b"to the other");
    send(&mut at_other, &relay.key, "to the relay's node").await;
    assert_eq!(packet(&mut at_relay).await.unwrap(), b"to the relay's node");
    assert_eq!(relay.counters.clients(), 3);
    assert!(relay.counters.bytes_in() > 0);
    let counters = Arc::clone(&relay.counters);
    relay.end().await;
    assert_eq!(counters.clients(), 0);
    // An orderly end tells its clients.
    assert_eq!(packet(&mut at_one).await, None);
}

#[tokio::test]
async fn stranger_with_a_key_of_its_own_is_refused_and_counted() {
    let relay = Relay::start(&[&NodeKey::generate()]).await;
    let refused = relay.connect(&NodeKey::generate()).await.unwrap_err();
    assert!(refused.to_string().contains("no peer"), "{refused}");
    assert_eq!(relay.counters.denied(), 1);
    relay.end().await;
}

#[tokio::test]
async fn node_that_becomes_a_peer_is_let_in_and_one_that_is_none_any_more_is_cut() {
    let (first, second) = (NodeKey::generate(), NodeKey::generate());
    let relay = Relay::start(&[&first]).await;
    let mut old = relay.connect(&first).await.unwrap();
    assert!(relay.connect(&second).await.is_err());

    relay.peers.send_replace(Arc::new(believed(&[&second])));
    assert_eq!(packet(&mut old).await, None);
    assert!(relay.connect(&second).await.is_ok());
    assert!(relay.connect(&first).await.is_err());
    assert!(relay.counters.cut() > 0);
    relay.end().await;
}

#[tokio::test]
async fn one_key_has_a_few_connections_and_the_oldest_makes_room() {
    let key = NodeKey::generate();
    let relay = Relay::start(&[&key]).await;
    let mut oldest = relay.connect(&key).await.unwrap();
    let mut newer = Vec::new();
    for _ in 0..4 {
        newer.push(relay.connect(&key).await.unwrap());
    }
    assert_eq!(packet(&mut oldest).await, None);
    // The newest is the one that packets go to.
    send(&mut newer[0], &key, "to myself").await;
    assert_eq!(packet(&mut newer[3]).await.unwrap(), b"to myself");
    relay.end().await;
}

#[tokio::test]
async fn relay_does_not_say_what_it_is() {
    let relay = Relay::start(&[]).await;
    for path in [
        "/",
        "/index.html",
        "/robots.txt",
        "/healthz",
        "/generate_204",
        "/derp",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
        let answer = answer(relay.at.relay, &request).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{path}: {answer}");
        assert!(!answer.to_lowercase().contains("iroh"), "{path}: {answer}");
    }
    let request = "GET /ping HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
    let ping = answer(relay.at.relay, request).await;
    assert!(ping.starts_with("HTTP/1.1 200 "), "{ping}");
    relay.end().await;
}

/// The request with which a client begins.
const UPGRADE: &str = "GET /relay HTTP/1.1\r\nHost: relay\r\nConnection: upgrade\r\nUpgrade: \
     websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Protocol: iroh-relay-v1\r\n\r\n";

#[tokio::test]
async fn stranger_that_begins_and_says_nothing_more_is_put_out() {
    let relay = Relay::start(&[]).await;
    for beginning in ["", "GET /relay HT", UPGRADE] {
        let mut stream = TcpStream::connect(relay.at.relay).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        if !beginning.is_empty() && beginning == UPGRADE {
            let mut some = [0; 12];
            stream.read_exact(&mut some).await.unwrap();
            assert_eq!(&some, b"HTTP/1.1 101");
        }
        // From here on only time can end it.
        tokio::time::pause();
        let mut rest = Vec::new();
        // It ends; whether by FIN or RST is the kernel's business.
        let _ = stream.read_to_end(&mut rest).await;
        tokio::time::resume();
    }
    relay.end().await;
}

#[tokio::test]
async fn relay_whose_port_is_taken_waits_until_it_is_free() {
    let predecessor = Relay::start(&[]).await;
    let settings = RelaySettings {
        listen: predecessor.at.relay,
        discovery: predecessor.at.discovery,
        ..RelaySettings::default()
    };
    let server = RelayServer::new(settings, NodeKey::generate(), Arc::default());
    let mut open = server.open();
    let (_peers, following) = watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let mut run = pin!(server.run(following, stop.clone()));
    let expected = predecessor.at;
    let handed_over = async {
        predecessor.end().await;
        *open.wait_for(Option::is_some).await.unwrap()
    };
    tokio::select! {
        () = &mut run => panic!("the relay has ended"),
        at = handed_over => assert_eq!(at, Some(expected)),
    }
    stop.cancel();
    run.await;
}

/// Asks for its own address, and believes a relay that has one of `keys`.
async fn observed(at: SocketAddr, keys: &[&NodeKey]) -> Option<(SocketAddr, SocketAddr)> {
    let trust = RelayTrust::default();
    let keys = keys.iter().map(|key| key.public()).collect();
    trust.set(BTreeMap::from([(at.ip(), keys)]));
    let endpoint = noq::Endpoint::client(LOOPBACK).unwrap();
    let tls = trust.tls().client_config(default_provider()).unwrap();
    let client = QuicClient::new(endpoint.clone(), tls);
    let connection = client.create_conn(at, &at.ip().to_string()).await.ok()?;
    let observed = connection.observed_external_addr().next().await?;
    Some((observed, endpoint.local_addr().unwrap()))
}

#[tokio::test]
async fn client_learns_its_address_from_a_relay_that_proves_its_nodes_key() {
    let relay = Relay::start(&[]).await;
    let (observed, own) = observed(relay.at.discovery, &[&relay.key]).await.unwrap();
    assert_eq!(observed, own);
    relay.end().await;
}

#[tokio::test]
async fn relay_that_shows_another_key_is_not_believed() {
    let relay = Relay::start(&[]).await;
    assert_eq!(
        observed(relay.at.discovery, &[&NodeKey::generate()]).await,
        None
    );
    assert_eq!(observed(relay.at.discovery, &[]).await, None);
    relay.end().await;
}

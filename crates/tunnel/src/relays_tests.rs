use edgemesh_catalog::{MeshNode, RelayServer};
use iroh::address_lookup::MemoryLookup;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::endpoint_options::{EndpointOptions, bind_endpoint};
use crate::identity::NodeKey;
use crate::relay_stage::{LOOPBACK, Link, Relay, believed, mesh_node};

const ALPN: &[u8] = b"test";
/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A node whose transport is kept by a keeper.
struct Member {
    key: NodeKey,
    endpoint: Endpoint,
    book: RelayBook,
    tasks: JoinSet<()>,
}

impl Member {
    /// Starts a node with this key. Without an address to listen at it can only be reached by
    /// relays.
    async fn start(key: NodeKey, listen: &[IpAddr], named: &[RelayNode], peers: &Peers) -> Self {
        let trust = RelayTrust::default();
        let endpoint = bind_endpoint(&EndpointOptions {
            key: key.clone(),
            alpns: vec![ALPN.to_vec()],
            bind: listen.to_vec(),
            port: 0,
            advertise: Vec::new(),
            lookup: MemoryLookup::new(),
            trust: trust.clone(),
            relay_dialer: None,
        })
        .await
        .unwrap();
        let book = RelayBook::new();
        let keeper = RelayKeeper {
            endpoint: endpoint.clone(),
            own: NodeName::new("own"),
            named: named.to_vec(),
            trust,
            book: book.clone(),
            detours: RelayDetours::new(),
        };
        let peers = Arc::new(peers.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (_told, peers) = watch::channel(peers);
            let (_open, own_relay) = watch::channel(None);
            keeper.run(peers, own_relay, CancellationToken::new()).await;
        });
        Self {
            key,
            endpoint,
            book,
            tasks,
        }
    }

    /// Waits until it is to be found at one of these.
    async fn is_at(&self, relays: &[&RelayUrl]) -> RelayUrl {
        let found = async {
            let mut statuses = self.endpoint.home_relay_status().stream();
            while let Some(status) = statuses.next().await {
                let at = status
                    .iter()
                    .find(|relay| relay.is_connected() && relays.contains(&relay.url()));
                if let Some(at) = at {
                    return at.url().clone();
                }
            }
            panic!("the endpoint is closed");
        };
        timeout(LONG, found).await.expect("it has found a relay")
    }

    async fn end(mut self) {
        self.endpoint.close().await;
        self.tasks.shutdown().await;
    }
}

fn named(node: &str, address: RelayAddress) -> RelayNode {
    RelayNode {
        node: NodeName::new(node),
        addresses: vec![address],
    }
}

/// One end says something, and the other says it back.
async fn talk(from: &Member, to: &Member, mesh_node: &MeshNode) {
    let address = from.book.get().address_of(mesh_node).unwrap();
    let answer = async {
        let incoming = to.endpoint.accept().await.unwrap();
        let connection = incoming.await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let said = receive.read_to_end(64).await.unwrap();
        send.write_all(&said).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    };
    let question = async {
        let connection = from.endpoint.connect(address, ALPN).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(b"over the relay").await.unwrap();
        send.finish().unwrap();
        let said = receive.read_to_end(64).await.unwrap();
        assert_eq!(said, b"over the relay");
        connection.close(0_u32.into(), b"");
    };
    timeout(LONG, async { tokio::join!(answer, question) })
        .await
        .expect("they have spoken");
}

#[tokio::test]
async fn nearest_of_several_relays_is_used_and_another_when_it_goes_away() {
    let keys = [(); 4].map(|()| NodeKey::generate());
    let [near_key, far_key, one_key, other_key] = &keys;
    let peers = believed(&[
        mesh_node("near", near_key),
        mesh_node("far", far_key),
        mesh_node("one", one_key),
        mesh_node("other", other_key),
    ]);
    let near = Relay::start_for(near_key.clone(), peers.clone()).await;
    let far = Relay::start_for(far_key.clone(), peers.clone()).await;
    let to_far = Link::to(far.at.relay, Duration::from_millis(150)).await;
    let to_near = Link::to(near.at.relay, Duration::ZERO).await;
    let (near_url, far_url) = (to_near.url(), to_far.url());
    let list = [named("near", to_near.address), named("far", to_far.address)];

    let one = Member::start(one_key.clone(), &[], &list, &peers).await;
    let other = Member::start(other_key.clone(), &[], &list, &peers).await;
    for member in [&one, &other] {
        let at = member.is_at(&[&near_url, &far_url]).await;
        assert_eq!(at, near_url);
    }
    let mut says = mesh_node("other", &other.key);
    says.relay_url = Some(near_url.to_string().into());
    talk(&one, &other, &says).await;

    to_near.cut().await;
    other.is_at(&[&far_url]).await;
    says.relay_url = Some(far_url.to_string().into());
    talk(&one, &other, &says).await;

    one.end().await;
    other.end().await;
    near.end().await;
    far.end().await;
}

#[tokio::test]
async fn relay_that_restarts_is_used_again() {
    let keys = [(); 2].map(|()| NodeKey::generate());
    let peers = believed(&[mesh_node("relay", &keys[0]), mesh_node("node", &keys[1])]);
    let relay = Relay::start_for(keys[0].clone(), peers.clone()).await;
    let at = RelayAddress::new(relay.at.relay).unwrap();
    let member = Member::start(keys[1].clone(), &[], &[named("relay", at)], &peers).await;
    member.is_at(&[&at.url().unwrap()]).await;
    relay.end().await;
    let mut statuses = member.endpoint.home_relay_status().stream();
    while statuses.next().await.unwrap()[0].is_connected() {}

    let settings = crate::relay_server::RelaySettings {
        listen: at.socket_addr(),
        discovery: LOOPBACK,
        ..Default::default()
    };
    let again = crate::relay_server::RelayServer::new(settings, keys[0].clone(), Arc::default());
    let (_told, following) = watch::channel(Arc::new(peers));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(again.run(following, stop.clone()));
    member.is_at(&[&at.url().unwrap()]).await;
    stop.cancel();
    tasks.join_next().await;
    member.end().await;
}

/// Whether the transport asks anybody for an address here: it does only on a host that has a
/// network.
fn has_network() -> bool {
    // Asks nothing of anybody: a UDP socket that is connected has sent no packet.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect("192.0.2.1:9").is_ok()
}

/// What a node says whose relay tells addresses at this port.
fn relay_that_tells_addresses(key: &NodeKey, port: u16) -> MeshNode {
    let mut says = mesh_node("relay", key);
    says.relay_server = Some(Box::new(RelayServer {
        urls: Vec::new(),
        address_discovery_port: port,
    }));
    says
}

/// A node, beside a relay of which it is told that it tells addresses.
struct Asking {
    relay: Relay,
    member: Member,
}

impl Asking {
    /// `at` is the port where the relay is said to do that, given its own.
    async fn start(at: impl FnOnce(u16) -> u16) -> Self {
        let keys = [(); 2].map(|()| NodeKey::generate());
        let node = mesh_node("node", &keys[1]);
        let first = believed(&[mesh_node("relay", &keys[0]), node.clone()]);
        let relay = Relay::start_for(keys[0].clone(), first).await;
        let says = relay_that_tells_addresses(&relay.key, at(relay.at.discovery.port()));
        let peers = believed(&[says, node]);
        let relays = [named("relay", RelayAddress::new(relay.at.relay).unwrap())];
        let member = Member::start(keys[1].clone(), &[LOOPBACK.ip()], &relays, &peers).await;
        Self { relay, member }
    }

    async fn end(self) {
        self.member.end().await;
        self.relay.end().await;
    }
}

#[tokio::test]
async fn node_asks_its_relay_for_its_address_and_believes_it_by_its_key() {
    if !has_network() {
        return;
    }
    let asking = Asking::start(|own| own).await;
    let asked = async {
        while asking.relay.counters.observers() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, asked).await.expect("it has asked");
    asking.end().await;
}

#[tokio::test]
async fn relay_is_chosen_before_it_is_asked_for_an_address_for_that_may_never_be_answered() {
    if !has_network() {
        return;
    }
    let silent = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let asking = Asking::start(|_| silent.local_addr().unwrap().port()).await;
    let asked = timeout(LONG, silent.recv_from(&mut [0; 2048])).await;
    asked.expect("it asks").unwrap();
    let status = asking.member.endpoint.home_relay_status().get();
    assert!(home_of(&status).is_some(), "asked before a choice was made");
    asking.end().await;
}

fn url(text: &str) -> RelayUrl {
    text.parse().unwrap()
}

fn wanted(urls: &[&RelayUrl]) -> BTreeMap<RelayUrl, RelayConfig> {
    urls.iter()
        .map(|url| ((*url).clone(), RelayConfig::new((*url).clone(), None)))
        .collect()
}

#[test]
fn relay_that_is_away_is_left_out_for_a_while_if_there_is_another() {
    let (a, b) = (url("http://192.0.2.1"), url("http://192.0.2.2"));
    let relays = wanted(&[&a, &b]);
    let start = Instant::now();
    let mut home = Home {
        away: Some((a.clone(), start)),
        ..Home::default()
    };
    assert_eq!(home.due(), Some(start + AWAY));
    assert!(!home.leave(&relays, start));
    assert!(home.leave(&relays, start + AWAY));
    assert!(home.left_out.contains_key(&a));
    // Nothing is left then: it stays where it is, however long that is away.
    home.away = Some((b.clone(), start));
    assert!(!home.leave(&relays, start + AWAY));
    assert!(!home.left_out.contains_key(&b));
    assert!(home.leave(&relays, start + AWAY + LEFT_OUT));
    assert!(home.left_out.is_empty());
}

#[test]
fn only_relay_is_never_left() {
    let only = url("http://192.0.2.1");
    let start = Instant::now();
    let mut home = Home {
        away: Some((only.clone(), start)),
        ..Home::default()
    };
    assert!(!home.leave(&wanted(&[&only]), start + AWAY));
    assert!(home.due() > Some(start + AWAY));
}

#[test]
fn own_relay_is_reached_over_loopback() {
    let at = |text: &str| locally(text.parse().unwrap()).map(|of| of.to_string());
    assert_eq!(at("[::]:20006").unwrap(), "http://127.0.0.1:20006/");
    assert_eq!(at("0.0.0.0:20006").unwrap(), "http://127.0.0.1:20006/");
    assert_eq!(at("192.0.2.1:443").unwrap(), "http://192.0.2.1:443/");
}

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::{SinkExt, StreamExt};
use iroh::dns::DnsResolver;
use iroh_relay::client::{Client, ClientBuilder, ConnectError};
use iroh_relay::protos::relay::{ClientToRelayMsg, Datagrams, RelayToClientMsg};
use iroh_relay::quic::QuicClient;
use iroh_relay::tls::default_provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::relay_stage::{LOOPBACK, Relay, believed, mesh_node};
use crate::relay_trust::RelayTrust;

async fn connect(relay: &Relay, key: &NodeKey) -> Result<Client, ConnectError> {
    let url: iroh::RelayUrl = format!("http://{}", relay.at.relay).parse().unwrap();
    let tls = RelayTrust::default().tls();
    let client = ClientBuilder::new(url, key.secret().clone(), DnsResolver::new());
    let tls = tls.client_config(default_provider()).unwrap();
    client.tls_client_config(tls).connect().await
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
    let mut at_one = connect(&relay, &one).await.unwrap();
    let mut at_other = connect(&relay, &other).await.unwrap();
    let mut at_relay = connect(&relay, &relay.key).await.unwrap();
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
    let refused = connect(&relay, &NodeKey::generate()).await.unwrap_err();
    assert!(refused.to_string().contains("no peer"), "{refused}");
    assert_eq!(relay.counters.denied(), 1);
    relay.end().await;
}

#[tokio::test]
async fn node_that_becomes_a_peer_is_let_in_and_one_that_is_none_any_more_is_cut() {
    let (first, second) = (NodeKey::generate(), NodeKey::generate());
    let relay = Relay::start(&[&first]).await;
    let mut old = connect(&relay, &first).await.unwrap();
    assert!(connect(&relay, &second).await.is_err());

    relay
        .peers
        .send_replace(Arc::new(believed(&[mesh_node("second", &second)])));
    assert_eq!(packet(&mut old).await, None);
    assert!(connect(&relay, &second).await.is_ok());
    assert!(connect(&relay, &first).await.is_err());
    assert!(relay.counters.cut() > 0);
    relay.end().await;
}

#[tokio::test]
async fn one_key_has_a_few_connections_and_the_oldest_makes_room() {
    let key = NodeKey::generate();
    let relay = Relay::start(&[&key]).await;
    let mut oldest = connect(&relay, &key).await.unwrap();
    let mut newer = Vec::new();
    for _ in 0..4 {
        newer.push(connect(&relay, &key).await.unwrap());
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

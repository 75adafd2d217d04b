//! A peer that does not keep to the protocol: it costs its stream, then its connection, and
//! nobody else anything.

mod stage;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use edgemesh_catalog::{
    Change, KeySignature, MeshNode, Node, NodeName, Protocol::Tcp, Protocol::Udp, PublicKey,
};
use edgemesh_tunnel::{DatagramDropped, Settings};
use edgemesh_wire::{ALPN, Answer, Datagram, Hello, MESSAGE_HEADER, MessageHeader, Request, Tally};
use iroh::endpoint::{Connection, ConnectionError, RelayMode, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, SecretKey, TransportAddr};
use stage::{Cluster, Member, PATIENCE, endpoint, eventually, run, service_port};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

/// A believed peer that speaks for itself.
struct Offender {
    endpoint: Endpoint,
    victim: EndpointAddr,
}

impl Offender {
    /// Joins the cluster as node `evil` and finds `victim`.
    async fn join(cluster: &mut Cluster, victim: &Member) -> Result<Self> {
        let secret = SecretKey::generate();
        let name = NodeName::new("evil");
        cluster.apply(Change::Node(Node {
            name: name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: Default::default(),
        }));
        let signature = secret.sign(b"edgemesh tunnel: the name of this key's node, v1\0evil");
        cluster.apply(Change::MeshNode(MeshNode {
            name: name.clone(),
            uid: None,
            public_key: PublicKey::from_bytes(*secret.public().as_bytes()),
            name_signature: Some(Box::new(KeySignature::from_bytes(signature.to_bytes()))),
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "1".into(),
            boot_id: "1".into(),
            previous_key: None,
        }));
        let mut reachability = victim.tunnel.reachability();
        let believed = reachability.wait_for(|r| r.peers().any(|peer| *peer == name));
        timeout(PATIENCE, believed).await??;
        let id = iroh::PublicKey::from_bytes(victim.mesh_node.public_key.as_bytes())?;
        let addresses = victim.mesh_node.addresses.iter().copied();
        Ok(Self {
            endpoint: endpoint_of(secret).await?,
            victim: EndpointAddr::from_parts(id, addresses.map(TransportAddr::Ip)),
        })
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(self.endpoint.connect(self.victim.clone(), ALPN).await?)
    }
}

async fn endpoint_of(secret: SecretKey) -> Result<Endpoint> {
    Ok(Endpoint::builder(presets::Minimal)
        .secret_key(secret)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(SocketAddr::from(([10, 1, 201, 1], 0)))?
        .bind()
        .await?)
}

/// A victim with an endpoint that must never hear from the offender.
async fn victim(cluster: &mut Cluster) -> Result<(Member, TcpListener)> {
    victim_with(cluster, |_| {}).await
}

async fn victim_with(
    cluster: &mut Cluster,
    adjust: impl FnOnce(&mut Settings),
) -> Result<(Member, TcpListener)> {
    let listener = TcpListener::bind(endpoint(1)).await?;
    let victim = cluster.join_with("victim", adjust).await?;
    cluster.service("web", Tcp, &[(endpoint(1), &victim)]);
    Ok((victim, listener))
}

/// What the victim answers to `bytes` on a stream of their own.
async fn answer_to(connection: &Connection, bytes: &[u8], finish: bool) -> Result<Answer> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(bytes).await?;
    if finish {
        send.finish()?;
    }
    let mut answer = [0; 1];
    timeout(PATIENCE, recv.read_exact(&mut answer)).await??;
    Ok(Answer::decode(answer[0])?)
}

fn valid_request() -> Result<Vec<u8>> {
    let request = Request {
        service_port: service_port("web", Tcp),
        endpoint: endpoint(1),
    };
    Ok(request.encode()?)
}

#[test]
fn broken_requests_cost_their_stream_and_are_counted() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            let valid = valid_request()?;
            let mut longer = valid.clone();
            longer[1] += 1;
            longer.push(0);
            let cases: [(&str, &[u8]); 5] = [
                ("a length beyond all bounds", &[0xff, 0xff, 1]),
                ("a truncated request", &valid[..valid.len() - 3]),
                ("a request with a byte too many", &longer),
                ("an unknown protocol", &[0, 1, 200]),
                ("nothing at all", &[]),
            ];
            for (what, bytes) in cases {
                let answer = answer_to(&connection, bytes, true).await.context(what)?;
                ensure!(answer == Answer::Malformed, "{what}: {answer:?}");
            }
            ensure!(victim.tunnel.counters().offences() == 5);
            // The connection is still good for an honest one.
            let answer = answer_to(&connection, &valid, false).await?;
            ensure!(answer == Answer::Connected, "{answer:?}");
            timeout(PATIENCE, listener.accept()).await??;
            Ok(())
        })
    })
}

#[test]
fn who_offends_again_and_again_loses_the_connection() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            for _ in 0..8 {
                // The last answer may be overtaken by the end of the connection.
                let _ = answer_to(&connection, &[0xff, 0xff], true).await;
            }
            let closed = timeout(PATIENCE, connection.closed()).await?;
            ensure!(
                matches!(&closed, ConnectionError::ApplicationClosed(close) if close.error_code == 5_u32.into()),
                "{closed:?}"
            );
            Ok(())
        })
    })
}

#[test]
fn giving_up_before_the_request_is_whole_is_no_offence() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, listener) = victim(cluster).await?;
            let honest = Offender::join(cluster, &victim).await?;
            let connection = honest.connect().await?;
            let valid = valid_request()?;
            for _ in 0..20 {
                let (mut send, _recv) = connection.open_bi().await?;
                send.write_all(&valid[..4]).await?;
                send.reset(16_u32.into())?;
            }
            let answer = answer_to(&connection, &valid, false).await?;
            ensure!(answer == Answer::Connected, "{answer:?}");
            timeout(PATIENCE, listener.accept()).await??;
            ensure!(victim.tunnel.counters().offences() == 0);
            Ok(())
        })
    })
}

#[test]
fn a_stream_that_does_not_say_what_it_wants_is_not_waited_for() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim_with(cluster, |settings| {
                settings.timing.request = Duration::from_millis(500);
            })
            .await?;
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            let answer = answer_to(&connection, &[0], false).await?;
            ensure!(answer == Answer::Failed, "{answer:?}");
            eventually("it is forgotten", || {
                victim.tunnel.counters().streams_in() == 0
            })
            .await
        })
    })
}

#[test]
fn datagrams_that_are_none_are_offences() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            connection.send_datagram(Bytes::new())?;
            connection.send_datagram(Bytes::from_static(&[0xc0]))?;
            eventually("both are counted", || {
                victim.tunnel.counters().offences() == 2
            })
            .await
        })
    })
}

#[test]
fn a_hello_of_another_length_is_an_offence() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            let mut hello = connection.open_uni().await?;
            hello.write_all(&[0; 1000]).await?;
            hello.finish()?;
            eventually("it is counted", || victim.tunnel.counters().offences() == 1).await
        })
    })
}

/// Says hello on `connection`, and then `more`.
async fn say_hello(connection: &Connection, more: &[u8]) -> Result<SendStream> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(&[7; Hello::LENGTH]).await?;
    stream.write_all(more).await?;
    Ok(stream)
}

#[test]
fn tallies_that_are_none_are_offences() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let one = Tally { sent: 1 }.encode();
            let cases = [
                ("one of nothing", vec![0; Tally::LENGTH]),
                ("one of billions", vec![0xff; Tally::LENGTH]),
                ("a part of one", one[1..].to_vec()),
                ("more than anybody has", one.repeat(100)),
            ];
            for (before, (what, bytes)) in (0..).zip(cases) {
                let connection = offender.connect().await?;
                let mut stream = say_hello(&connection, &bytes).await?;
                stream.finish()?;
                eventually(what, || victim.tunnel.counters().offences() > before).await?;
                connection.close(0_u32.into(), b"");
            }
            ensure!(victim.tunnel.counters().offences() == 4);
            Ok(())
        })
    })
}

#[test]
fn messages_taken_are_told_and_who_took_what_was_never_sent_is_an_offender() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let endpoint_of_it = UdpSocket::bind(endpoint(2)).await?;
            let (victim, _listener) = victim(cluster).await?;
            cluster.service("dns", Udp, &[(endpoint(2), &victim)]);
            let offender = Offender::join(cluster, &victim).await?;
            let connection = offender.connect().await?;
            let _hello = say_hello(&connection, &[]).await?;
            let request = Request {
                service_port: service_port("dns", Udp),
                endpoint: endpoint(2),
            };
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&request.encode()?).await?;
            send.write_all(&MessageHeader::Message(3).encode()?).await?;
            send.write_all(b"one").await?;
            let mut answer = [0; 1];
            timeout(PATIENCE, recv.read_exact(&mut answer)).await??;
            ensure!(Answer::decode(answer[0])? == Answer::Connected);
            let mut word = [0; MESSAGE_HEADER];
            timeout(PATIENCE, recv.read_exact(&mut word)).await??;
            ensure!(MessageHeader::decode(word) == MessageHeader::Taken(1));
            let mut came = [0; 16];
            let n = timeout(PATIENCE, endpoint_of_it.recv(&mut came)).await??;
            ensure!(&came[..n] == b"one");
            ensure!(victim.tunnel.counters().offences() == 0);
            send.write_all(&MessageHeader::Taken(1).encode()?).await?;
            eventually("that is counted", || {
                victim.tunnel.counters().offences() == 1
            })
            .await
        })
    })
}

#[test]
fn what_a_peer_has_sent_and_did_not_come_is_counted_as_lost() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let honest = Offender::join(cluster, &victim).await?;
            let connection = honest.connect().await?;
            let tallies = [5, 4].map(|sent| Tally { sent }.encode());
            for is_odd in [false, false, true, true, true] {
                connection.send_datagram(Datagram::encode(0, is_odd, b"x"))?;
            }
            let _stream = say_hello(&connection, tallies.as_flattened()).await?;
            let counters = victim.tunnel.counters();
            let lost = || counters.datagrams_dropped(DatagramDropped::Lost);
            eventually("four are counted", || lost() >= 4).await?;
            ensure!((lost(), counters.offences()) == (4, 0));
            Ok(())
        })
    })
}

#[test]
fn who_speaks_another_protocol_is_not_let_in() -> Result<()> {
    edgemesh_lab::test(|_| {
        run(async |cluster| {
            let (victim, _listener) = victim(cluster).await?;
            let offender = Offender::join(cluster, &victim).await?;
            let victim_at = offender.victim.clone();
            for other in [&b"edgemesh/2"[..], b"h3", b"/iroh-qad/0"] {
                let connected = offender.endpoint.connect(victim_at.clone(), other).await;
                ensure!(connected.is_err(), "{}", String::from_utf8_lossy(other));
            }
            Ok(())
        })
    })
}

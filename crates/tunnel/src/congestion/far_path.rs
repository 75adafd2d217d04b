//! Two ends of the transport, with a controller each, over a far path that loses packets both
//! ways. Time is counted; only keys and packet numbers differ from run to run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use iroh_relay::quic::ALPN_QUIC_ADDR_DISC;
use iroh_relay::tls::default_provider;
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use noq::{ClientConfig, EndpointConfig, ServerConfig, TransportConfig};
use noq_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, FourTuple, StreamId, Transmit,
};

use super::PathControllers;
use crate::endpoint_options::STREAM_WINDOW;
use crate::identity::NodeKey;
use crate::read_ahead::{BytesAhead, ReadAhead};
use crate::relay_certificate::server_tls;
use crate::relay_trust::RelayTrust;

struct Node {
    address: SocketAddr,
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

/// One direction.
struct Way {
    free_at: Duration,
    chance: u64,
}

/// What both directions do to packets.
#[derive(Clone, Copy)]
struct Conditions {
    delay: Duration,
    /// Packets of 100,000 that are lost.
    lost: u64,
}

/// When a packet arrives, its number, at which node, and its bytes.
type UnderWay = (Duration, u64, usize, Vec<u8>);

/// Bits per second.
const RATE: u64 = 200_000_000;
/// Bytes that wait before it.
const QUEUE: usize = 500 * 1500;

struct Far {
    conditions: Conditions,
    start: Instant,
    now: Duration,
    nodes: [Node; 2],
    ways: [Way; 2],
    under_way: BinaryHeap<Reverse<UnderWay>>,
    order: u64,
    sends: Option<StreamId>,
    reads: Option<StreamId>,
    ahead: ReadAhead,
    delivered: u64,
    writes: bool,
}

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Far {
    fn new(conditions: Conditions, seed: u64) -> Self {
        let key = NodeKey::generate();
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(64_000_000_u32.into())
            .send_window(10_000_000)
            .initial_rtt(Duration::from_millis(100))
            .keep_alive_interval(Some(Duration::from_millis(800)))
            .congestion_controller_factory(Arc::new(PathControllers::default()));
        let transport = Arc::new(transport);
        let tls = QuicServerConfig::try_from(server_tls(&key).unwrap()).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::clone(&transport));
        let server = at(2);
        let start = Instant::now();
        let of_server = Endpoint::new(
            Arc::new(EndpointConfig::default()),
            Some(Arc::new(config)),
            true,
        );
        let mut of_client = Endpoint::new(Arc::new(EndpointConfig::default()), None, true);
        let trust = RelayTrust::default();
        trust.set(BTreeMap::from([(server.ip(), [key.public()].into())]));
        let mut tls = trust.tls().client_config(default_provider()).unwrap();
        tls.alpn_protocols = vec![ALPN_QUIC_ADDR_DISC.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(transport);
        let name = server.ip().to_string();
        let connection = of_client.connect(start, config, server, &name).unwrap();
        let way = |chance| Way {
            free_at: Duration::ZERO,
            chance,
        };
        Self {
            conditions,
            start,
            now: Duration::ZERO,
            nodes: [
                Node {
                    address: at(1),
                    endpoint: of_client,
                    connection: Some(connection),
                },
                Node {
                    address: server,
                    endpoint: of_server,
                    connection: None,
                },
            ],
            ways: [
                way(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
                way(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1),
            ],
            under_way: BinaryHeap::new(),
            order: 0,
            sends: None,
            reads: None,
            ahead: ReadAhead::new(0, BytesAhead::default()),
            delivered: 0,
            writes: false,
        }
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// Puts what a node sends on its way.
    fn put(&mut self, from: usize, transmit: &Transmit, bytes: &[u8]) {
        let Conditions { delay, lost } = self.conditions;
        let way = &mut self.ways[from];
        for packet in bytes[..transmit.size].chunks(transmit.segment_size.unwrap_or(transmit.size))
        {
            let takes = |bytes: usize| Duration::from_nanos(bytes as u64 * 8_000_000_000 / RATE);
            let size = takes(packet.len() + 28);
            let begin = way.free_at.max(self.now);
            if begin > self.now && begin + size > self.now + takes(QUEUE) {
                continue;
            }
            way.free_at = begin + size;
            way.chance ^= way.chance << 13;
            way.chance ^= way.chance >> 7;
            way.chance ^= way.chance << 17;
            if (way.chance >> 16) % 100_000 < lost {
                continue;
            }
            self.order += 1;
            self.under_way.push(Reverse((
                way.free_at + delay,
                self.order,
                1 - from,
                packet.to_vec(),
            )));
        }
    }

    fn receive(&mut self, at: usize, packet: &[u8]) {
        let now = self.instant();
        let from = FourTuple::new(self.nodes[1 - at].address, None);
        let mut answer = Vec::new();
        let node = &mut self.nodes[at];
        match node
            .endpoint
            .handle(now, from, None, BytesMut::from(packet), &mut answer)
        {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut node.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = node.endpoint.accept(incoming, now, &mut answer, None);
                node.connection = Some(accepted.ok().unwrap());
            }
            Some(DatagramEvent::Response(transmit)) => self.put(at, &transmit, &answer),
            None => {}
        }
    }

    fn drive(&mut self, at: usize) {
        let now = self.instant();
        let mut buffer = Vec::new();
        let Some((handle, mut connection)) = self.nodes[at].connection.take() else {
            return;
        };
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.nodes[at].endpoint.handle_event(handle, event) {
                connection.handle_event(event);
            }
        }
        while connection.poll().is_some() {}
        match at {
            0 => self.read(&mut connection),
            _ => self.write(&mut connection),
        }
        let ten = NonZeroUsize::new(10).unwrap();
        loop {
            buffer.clear();
            let Some(transmit) = connection.poll_transmit(now, ten, &mut buffer) else {
                break;
            };
            self.put(at, &transmit, &buffer);
        }
        self.nodes[at].connection = Some((handle, connection));
    }

    fn write(&mut self, connection: &mut Connection) {
        if self.sends.is_none() && !connection.is_handshaking() {
            self.sends = connection.streams().open(Dir::Uni);
        }
        let Some(stream) = self.sends else {
            return;
        };
        while self.writes && connection.send_stream(stream).write(&[7; 65536]).is_ok() {}
    }

    fn read(&mut self, connection: &mut Connection) {
        if self.reads.is_none() {
            self.reads = connection.streams().accept(Dir::Uni);
        }
        let Some(stream) = self.reads else {
            return;
        };
        let mut stream = connection.recv_stream(stream);
        let mut chunks = stream.read(false).unwrap();
        loop {
            let room = self.ahead.room();
            let most = if room > 0 { room } else { 16 * 1024 };
            if room == 0 {
                let Ok(Some(first)) = chunks.next(0) else {
                    break;
                };
                if first.offset > self.ahead.at() {
                    break;
                }
            }
            let Ok(Some(chunk)) = chunks.next(most) else {
                break;
            };
            self.ahead.put(chunk.offset, &chunk.bytes).unwrap();
            while let Some(bytes) = self.ahead.take(usize::MAX) {
                self.delivered += bytes.len() as u64;
            }
        }
        let _ = chunks.finalize();
    }

    fn run_until(&mut self, until: Duration) {
        while self.now < until {
            for at in [0, 1] {
                self.drive(at);
            }
            let timers = self.nodes.iter().filter_map(|node| {
                let due = node.connection.as_ref()?.1.poll_timeout()?;
                Some(due.saturating_duration_since(self.start))
            });
            let due = timers.min().unwrap_or(until);
            let arrives = self.under_way.peek().map_or(until, |next| next.0.0);
            self.now = due.min(arrives).max(self.now);
            while let Some(next) = self.under_way.peek()
                && next.0.0 <= self.now
            {
                let Some(Reverse((_, _, at, packet))) = self.under_way.pop() else {
                    break;
                };
                self.receive(at, &packet);
            }
        }
    }

    /// Bits per second that are read within the next `seconds`.
    fn reads_for(&mut self, seconds: u64) -> u64 {
        let before = self.delivered;
        self.run_until(self.now + Duration::from_secs(seconds));
        (self.delivered - before) * 8 / seconds
    }
}

const NEAR: Conditions = Conditions {
    delay: Duration::from_millis(15),
    lost: 500,
};
const FAR: Conditions = Conditions {
    delay: Duration::from_millis(50),
    lost: 2000,
};

#[test]
fn stream_over_a_far_path_with_loss_is_as_fast_as_its_window() {
    let mut far = Far::new(FAR, 1);
    far.writes = true;
    far.reads_for(2);
    let rate = far.reads_for(4);
    // 92 Mbit/s are what the window of a stream holds.
    assert!(rate > 50_000_000, "{rate}");
}

#[test]
fn path_that_became_longer_while_little_went_over_it_is_used_up() {
    for idle in [1, 6] {
        let mut far = Far::new(NEAR, idle);
        far.run_until(Duration::from_secs(idle));
        far.conditions = FAR;
        far.writes = true;
        far.reads_for(2);
        let rate = far.reads_for(4);
        assert!(rate > 50_000_000, "{rate} after {idle} s");
    }
}

#[test]
fn stream_after_a_pause_is_as_fast_as_the_one_before() {
    let mut far = Far::new(FAR, 3);
    far.writes = true;
    far.reads_for(6);
    far.writes = false;
    far.reads_for(20);
    far.writes = true;
    let rate = far.reads_for(2);
    assert!(rate > 50_000_000, "{rate}");
}

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use iroh_relay::quic::ALPN_QUIC_ADDR_DISC;
use iroh_relay::tls::default_provider;
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use noq::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::*;
use crate::codes;
use crate::congestion::PathControllers;
use crate::endpoint_options::STREAM_WINDOW;
use crate::identity::NodeKey;
use crate::relay_certificate::server_tls;
use crate::relay_trust::RelayTrust;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long a packet is on its way.
const DELAY: Duration = Duration::from_millis(15);
/// Of so many packets one is lost.
const LOST: usize = 50;
/// A few windows.
const MUCH: usize = 4 << 20;

/// A connection over a long path that loses packets.
struct Far {
    here: Connection,
    there: Connection,
    _endpoints: [Endpoint; 2],
    tasks: JoinSet<()>,
}

impl Far {
    async fn connect() -> Self {
        let key = NodeKey::generate();
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(STREAM_WINDOW.into())
            .congestion_controller_factory(Arc::new(PathControllers::default()));
        let transport = Arc::new(transport);

        let tls = QuicServerConfig::try_from(server_tls(&key).unwrap()).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::clone(&transport));
        let server = Endpoint::server(config, ANY).unwrap();

        let mut way = JoinSet::new();
        let at = lossy_way(&mut way, server.local_addr().unwrap()).await;
        let trust = RelayTrust::default();
        trust.set(BTreeMap::from([(at.ip(), [key.public()].into())]));
        let mut tls = trust.tls().client_config(default_provider()).unwrap();
        tls.alpn_protocols = vec![ALPN_QUIC_ADDR_DISC.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(transport);
        let client = Endpoint::client(ANY).unwrap();
        let connecting = client.connect_with(config, at, &at.ip().to_string());
        let accepting = async { server.accept().await.unwrap().await.unwrap() };
        let (here, there) = tokio::join!(connecting.unwrap(), accepting);
        Self {
            here: here.unwrap(),
            there,
            _endpoints: [client, server],
            tasks: way,
        }
    }

    /// A stream whose sender runs as `sends`, and what comes of it.
    async fn stream<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        sends: impl FnOnce(noq::SendStream) -> F,
        all: &BytesAhead,
    ) -> Inflow {
        let send = self.here.open_uni().await.unwrap();
        self.tasks.spawn(sends(send));
        let mut inflow = Inflow::new(self.there.accept_uni().await.unwrap());
        inflow.may_be_read_ahead(all);
        inflow
    }
}

/// Where packets for `server` may be sent to; they take their time, and some are lost.
async fn lossy_way(tasks: &mut JoinSet<()>, server: SocketAddr) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind(ANY).await.unwrap());
    let back = Arc::new(UdpSocket::bind(ANY).await.unwrap());
    back.connect(server).await.unwrap();
    let at = front.local_addr().unwrap();
    let mut first = [0; 2048];
    let (there, answers) = (Arc::clone(&front), Arc::clone(&back));
    tasks.spawn(async move {
        let (_, client) = front.peek_from(&mut first).await.unwrap();
        front.connect(client).await.unwrap();
        tokio::join!(pass_on(&there, &answers), pass_on(&back, &front));
    });
    at
}

async fn pass_on(from: &UdpSocket, to: &UdpSocket) {
    let mut under_way: VecDeque<(tokio::time::Instant, Vec<u8>)> = VecDeque::new();
    let mut count = 0;
    let mut packet = [0; 2048];
    loop {
        let next = under_way
            .front()
            .map_or_else(tokio::time::Instant::now, |next| next.0);
        tokio::select! {
            length = from.recv(&mut packet) => {
                count += 1;
                if let Ok(length) = length && count % LOST != 0 {
                    under_way.push_back((tokio::time::Instant::now() + DELAY, packet[..length].to_vec()));
                }
            }
            () = sleep_until(next), if !under_way.is_empty() => {
                if let Some((_, packet)) = under_way.pop_front() {
                    let _ = to.send(&packet).await;
                }
            }
        }
    }
}

fn pattern() -> Vec<u8> {
    (0..MUCH).map(|i| (i % 251 + i / 65_536) as u8).collect()
}

async fn sends_all(mut send: noq::SendStream) {
    send.write_all(&pattern()).await.unwrap();
    send.finish().unwrap();
    let _ = send.stopped().await;
}

/// The next pieces, as a connection is carried: one, and what is there behind it.
async fn next(inflow: &mut Inflow) -> io::Result<Vec<u8>> {
    let first = inflow.piece(1000).await?;
    let mut run = [const { Bytes::new() }; 8];
    let count = poll_fn(|cx| match inflow.poll_run(cx, &mut run) {
        Poll::Pending => Poll::Ready(Ok(0)),
        ready @ Poll::Ready(_) => ready,
    });
    let count = count.await?;
    Ok([&[first.unwrap_or_default()], &run[..count]]
        .concat()
        .concat())
}

#[tokio::test]
async fn lossy_long_way_is_read_beyond_gaps_and_nothing_is_missed() {
    let mut far = Far::connect().await;
    let all = BytesAhead::default();
    let mut inflow = far.stream(sends_all, &all).await;
    let (mut read, mut most) = (Vec::new(), 0);
    loop {
        let pieces = next(&mut inflow).await.unwrap();
        if pieces.is_empty() {
            break;
        }
        most = most.max(all.count());
        read.extend_from_slice(&pieces);
    }
    assert!(read == pattern());
    assert!(most > 0, "nothing was read beyond a gap");
    drop(inflow);
    assert_eq!(all.count(), 0);
}

#[tokio::test]
async fn without_room_for_it_nothing_is_read_beyond_gaps_and_nothing_is_missed() {
    let mut far = Far::connect().await;
    let all = BytesAhead::used_up();
    let before = all.count();
    let mut inflow = far.stream(sends_all, &all).await;
    let mut read = Vec::new();
    loop {
        let pieces = next(&mut inflow).await.unwrap();
        if pieces.is_empty() {
            break;
        }
        read.extend_from_slice(&pieces);
    }
    assert!(read == pattern());
    assert!(matches!(inflow.source, Source::AsItComes(_)));
    assert_eq!(all.count(), before);
}

#[tokio::test]
async fn reset_of_what_is_read_as_it_comes_is_no_end() {
    for all in [BytesAhead::default(), BytesAhead::used_up()] {
        let mut far = Far::connect().await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let sends = |mut send: noq::SendStream| async move {
            let bytes = pattern();
            let writes = async { while send.write_all(&bytes).await.is_ok() {} };
            tokio::select! {
                () = writes => {}
                _ = told => {}
            }
            send.reset(codes::RESET).unwrap();
            std::future::pending::<()>().await;
        };
        let mut inflow = far.stream(sends, &all).await;
        let mut tell = Some(tell);
        let error = loop {
            match next(&mut inflow).await {
                Ok(pieces) => assert!(!pieces.is_empty(), "a reset counted as an end"),
                Err(error) => break error,
            }
            if matches!(inflow.source, Source::AsItComes(_))
                && let Some(tell) = tell.take()
            {
                tell.send(()).unwrap();
            }
        };
        assert!(tell.is_none(), "it was never read as it comes");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn only_what_arrives_and_cannot_be_read_counts_as_a_gap() {
    let begin = Instant::now();
    let after = |millis| move || begin + Duration::from_millis(millis);
    let mut watch = GapWatch::new();
    assert!(!watch.stays(false, true, after(0)));
    assert!(!watch.stays(false, true, after(4)));
    // Woken by somebody else.
    assert!(!watch.stays(false, false, after(10)));
    // The gap was filled.
    assert!(!watch.stays(true, true, after(11)));
    assert!(!watch.stays(false, true, after(12)));
    assert!(watch.stays(false, true, after(17)));
}

#[test]
fn who_is_woken_knows_whether_something_arrived() {
    let watch = GapWatch::new();
    let woken = Arc::<Arrival>::default();
    let waker = Waker::from(Arc::clone(&woken));
    assert!(!watch.arrived_for(&waker));
    watch.waker.wake_by_ref();
    assert!(woken.arrived.load(Ordering::Acquire), "the task sleeps on");
    assert!(watch.arrived_for(&waker));
    assert!(!watch.arrived_for(&waker));
}

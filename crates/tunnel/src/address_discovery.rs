//! Tells others the address that they are seen to have: QUIC address discovery.
//!
//! A node behind a NAT cannot know the address that the NAT gave it, and without that no
//! hole can be punched. It asks over QUIC, from the very socket that the hole is for. As
//! with STUN, everybody may ask: the answer is what the one who asks has sent. Nothing else
//! can be done with such a connection; there are no streams and no datagrams.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use noq::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use noq::{Endpoint, IdleTimeout, Incoming, ServerConfig, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::address_places::{AddressPlaces, Place};
use crate::identity::NodeKey;
use crate::relay_certificate::server_tls;
use crate::relay_counters::RelayCounters;

/// Connections in all. A node has one for as long as it runs.
const IN_ALL: usize = 8192;
/// Connections from one address: the nodes of a site behind one NAT.
const PER_ADDRESS: usize = 1024;
/// From so many connections on, a client has to show that its address is its own before
/// anything is kept for it. That takes it one round trip more.
const RELAXED: usize = 512;
/// A client that is silent for so long is gone. Clients send something every 25 s.
const IDLE_MS: u32 = 60_000;
/// How long a client may take to begin.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last packets may take to go out at the end.
const FAREWELL: Duration = Duration::from_millis(500);
/// What a client is told at the end.
const ENDING: VarInt = VarInt::from_u32(1);

/// The socket, and what belongs to it.
#[derive(Debug)]
pub(crate) struct AddressDiscovery {
    endpoint: Endpoint,
    places: AddressPlaces,
    counters: Arc<RelayCounters>,
}

/// Why nobody can be told their address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryFault {
    /// TLS cannot be had.
    #[error("prepare TLS for address discovery")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// TLS cannot be used for QUIC.
    #[error("prepare QUIC for address discovery")]
    Quic(#[from] NoInitialCipherSuite),
    /// The system refused the socket.
    #[error("open UDP socket {address} for address discovery")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

impl AddressDiscovery {
    /// Opens the socket. An unspecified IPv6 address is for IPv4, too.
    pub(crate) fn bind(
        address: SocketAddr,
        key: &NodeKey,
        counters: Arc<RelayCounters>,
    ) -> Result<Self, DiscoveryFault> {
        let endpoint = Endpoint::server(server(key)?, address)
            .map_err(|source| DiscoveryFault::Bind { address, source })?;
        Ok(Self {
            endpoint,
            places: AddressPlaces::new(IN_ALL, PER_ADDRESS),
            counters,
        })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            self.counters.set_observers(self.places.in_use());
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &mut connections),
                    None => break,
                },
            }
        }
        self.endpoint.close(ENDING, b"");
        // Whoever misses it notices by itself.
        let _ = timeout(FAREWELL, self.endpoint.wait_idle()).await;
        connections.shutdown().await;
        self.counters.set_observers(0);
    }

    fn admit(&self, incoming: Incoming, connections: &mut JoinSet<()>) {
        if self.places.in_use() >= RELAXED && !incoming.remote_address_validated() {
            // Fails for an address that is validated, which this one is not.
            let _ = incoming.retry();
            return;
        }
        match self.places.take(incoming.remote_address().ip()) {
            Some(place) => {
                connections.spawn(observe(incoming, place));
            }
            None => {
                self.counters.note_observer_turned_away();
                incoming.refuse();
            }
        }
    }
}

/// Keeps a connection for as long as its client does. What the client wants is sent by the
/// transport itself, with the first packets and whenever its address changes.
async fn observe(incoming: Incoming, place: Place) {
    match timeout(HANDSHAKE, incoming).await {
        Ok(Ok(connection)) => {
            connection.closed().await;
        }
        Ok(Err(error)) => debug!(%error, "nobody is told their address"),
        Err(_elapsed) => debug!("a client that asks for its address did not go on"),
    }
    drop(place);
}

fn server(key: &NodeKey) -> Result<ServerConfig, DiscoveryFault> {
    let tls = QuicServerConfig::try_from(server_tls(key)?)?;
    let mut transport = noq::TransportConfig::default();
    transport
        .max_concurrent_uni_streams(0_u8.into())
        .max_concurrent_bidi_streams(0_u8.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .send_observed_address_reports(true);
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::new(transport));
    Ok(server)
}

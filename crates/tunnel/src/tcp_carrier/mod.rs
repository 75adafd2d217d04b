//! The second carrier: TCP with TLS, for streams that move much.
//!
//! QUIC in user space costs more than twice the work of TCP in the kernel, and moves half as
//! much. But a stream on QUIC survives what a TCP connection does not: another address, a NAT
//! that forgets, an uplink that is away for half a minute. So every stream begins, ends and
//! lives on the QUIC connection with its peer, and what it is asked for and answered there is
//! the same for all. One that has moved a megabyte gets a *lane*: a TCP connection with TLS 1.3
//! of its own, made in the background, to which its bytes move while they are many.
//!
//! ```text
//! opener ══ QUIC stream: request, answer, first bytes, end, reset ══════ exit
//!        ── QUIC stream of the lane: Move, then words (positions) ──────
//!        ── lane: TCP + TLS, nothing but the bytes in between ──────────
//! ```
//!
//! * Both ends count the bytes of each direction. The sender says at which position it goes
//!   over to the lane and at which back; the receiver how far it has come. What the receiver
//!   has not yet passed on, the sender keeps (up to 4 MiB), so a lane may be lost at any
//!   moment: the stream goes on by QUIC, from the very byte.
//! * Nothing waits for a lane, and there is no pool of idle connections that could be dead. A
//!   lane that nobody uses, or whose reader does not read, for 10 s is given up in order.
//! * Whether a lane still works is found out by QUIC, which follows a peer wherever it goes:
//!   a sender that misses an answer says how much has left it, and when a second later none of
//!   that has arrived, the receiver asks for it by the stream.
//! * Either side may dial. Who can is found by trying ([`trials`]); the side that opened the
//!   stream decides and the other one agrees, so that two behind NATs stay with QUIC.
//! * Both sides prove their nodes' keys ([`key_proof`]), and a token, agreed on over QUIC,
//!   tells which stream a connection is for. When a peer is believed no more its QUIC
//!   connection is closed, which ends its streams, and these their lanes.
//! * A lane belongs to one stream, so nothing of another one stands in its way. What its
//!   reader does not take stops its writer, as anywhere with TCP.

mod addresses;
mod budget;
mod guide;
mod handshake;
mod key_proof;
mod lane;
mod lane_table;
mod listener;
mod lobby;
mod mover;
mod receiving;
mod record;
mod sending;
mod trials;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgemesh_catalog::PublicKey;
use edgemesh_sockets::{EndpointAddr, OutwardSockets};
use edgemesh_wire::{Answer, Dialler, LaneToken, Move};
use iroh::TransportAddr;
use iroh::endpoint::{Connection, SendStream};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ServerConfig};
use tracing::debug;

use self::budget::Budget;
use self::handshake::{HandshakeFault, Secured};
use self::key_proof::{dialler_tls, listener_tls};
use self::lane::Lane;
use self::lobby::Lobby;
use self::trials::Trials;
use crate::counters::Counters;
use crate::identity::NodeKey;
use crate::peer_address::public_key;
use crate::peer_book::Peers;
use crate::peer_stream::PeerStream;
use crate::session::Session;

pub(crate) use self::guide::{Brought, Guided, Lanes, Progress};
pub(crate) use self::lane::{LaneIn, LaneOut};
pub(crate) use self::lane_table::LaneTable;
pub(crate) use self::listener::{SideDoor, keep_listening, side_door};
pub(crate) use self::mover::Mover;
pub(crate) use self::receiving::{receive_by_lane, switch};
pub(crate) use self::sending::send_by_lane;

/// How long one address of a peer may take to become a lane.
const DIAL: Duration = Duration::from_secs(2);
/// How long the other end may take to dial all that it tries.
const ARRIVAL: Duration = Duration::from_secs(8);
/// Congestion control of lanes, where the kernel has it: as on QUIC, for the same reason.
const CONGESTION_CONTROL: &[u8] = b"bbr";

/// What the carrier is made from.
#[derive(Debug)]
pub(crate) struct CarrierOptions {
    /// This node's key.
    pub(crate) key: NodeKey,
    /// Makes the sockets.
    pub(crate) sockets: OutwardSockets,
    /// Who is believed.
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    /// Where lanes are used.
    pub(crate) runtime: Handle,
    /// Where it counts.
    pub(crate) counters: Arc<Counters>,
}

/// Makes lanes.
#[derive(Debug)]
pub(crate) struct Carrier {
    options: CarrierOptions,
    listener_tls: Arc<ServerConfig>,
    lobby: Lobby,
    budget: Budget,
    counters: Arc<Counters>,
    trials: Mutex<BTreeMap<PublicKey, Trials>>,
}

impl Carrier {
    /// # Errors
    ///
    /// When TLS refuses its own settings.
    pub(crate) fn new(options: CarrierOptions) -> Result<Self, rustls::Error> {
        Ok(Self {
            listener_tls: Arc::new(listener_tls(&options.key, options.peers.clone())?),
            lobby: Lobby::default(),
            budget: Budget::default(),
            counters: Arc::clone(&options.counters),
            trials: Mutex::default(),
            options,
        })
    }

    /// The other end wants a lane for one of the streams that it has opened.
    pub(crate) async fn agree(&self, asked: Move, words: PeerStream, session: &Session) {
        let mut words = words;
        hurry(&words.send);
        let secured = match self.lane_for(asked, &mut words, session).await {
            Ok(secured) => secured,
            Err(answer) => return say_no(words, answer).await,
        };
        let Some((secured, place, offers)) = secured else {
            return;
        };
        let lane = Lane {
            words,
            secured,
            place,
            runtime: self.options.runtime.clone(),
            beside: Arc::clone(&session.lanes),
            counters: Arc::clone(&self.counters),
        };
        // The stream may have ended; then the lane ends, too.
        let _ = offers.send(lane).await;
    }

    /// The connection for it; none when nobody came although the answer was yes.
    async fn lane_for(
        &self,
        asked: Move,
        words: &mut PeerStream,
        session: &Session,
    ) -> Result<Option<ForStream>, Answer> {
        let offers = session.lanes.of(asked.stream);
        let offers = offers.ok_or(Answer::NotAnEndpoint)?;
        let connection = &session.connection;
        let key = public_key(&connection.remote_id());
        let place = self.budget.take(key).ok_or(Answer::Busy)?;
        let secured = match asked.dialler {
            Dialler::Opener => {
                let mut expected = self.lobby.expect(asked.token, key);
                say_yes(words).await;
                timeout(ARRIVAL, expected.arrived()).await.ok().flatten()
            }
            Dialler::Exit => {
                let dialled = self.dial(connection, asked.token).await;
                let dialled = dialled.ok_or(Answer::Unreachable)?;
                say_yes(words).await;
                Some(dialled)
            }
        };
        Ok(secured.map(|secured| (secured, place, offers)))
    }

    /// Dials the peer at the other end of `connection`, and brings `token`.
    async fn dial(&self, connection: &Connection, token: LaneToken) -> Option<Secured> {
        for address in self.addresses_of(connection) {
            let error = match timeout(DIAL, self.dial_at(address, connection, token)).await {
                Ok(Ok(secured)) => return Some(secured),
                Ok(Err(error)) => error,
                Err(_) => io::Error::from(io::ErrorKind::TimedOut).into(),
            };
            let error: &dyn std::error::Error = &error;
            debug!(%address, error, "a peer is not to be dialled by TCP");
        }
        None
    }

    async fn dial_at(
        &self,
        address: SocketAddr,
        connection: &Connection,
        token: LaneToken,
    ) -> Result<Secured, HandshakeFault> {
        let options = &self.options;
        let tls = dialler_tls(&options.key, public_key(&connection.remote_id()))?;
        let tcp = options.sockets.connect_tcp(EndpointAddr(address)).await?;
        tune_lane(&tcp)?;
        let mut secured = Secured::dialled(tcp, Arc::new(tls)).await?;
        secured.present(token).await?;
        Ok(secured)
    }

    fn addresses_of(&self, connection: &Connection) -> Vec<SocketAddr> {
        let peers = Arc::clone(&self.options.peers.borrow());
        let Some(peer) = peers.with_key(&public_key(&connection.remote_id())) else {
            return Vec::new();
        };
        let paths = connection.paths();
        let selected = paths.iter().find(iroh::endpoint::Path::is_selected);
        let connected_at = selected.and_then(|path| ip_of(path.remote_addr()));
        addresses::addresses(connected_at, &peer.mesh_node.addresses)
    }

    /// What is known of the ways to the peer with `key`.
    fn trials<T>(&self, key: &PublicKey, look: impl FnOnce(&mut Trials) -> T) -> T {
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        if !trials.contains_key(key) {
            // Those of keys that are nobody's any more go.
            let peers = Arc::clone(&self.options.peers.borrow());
            trials.retain(|key, _| peers.with_key(key).is_some());
        }
        look(trials.entry(*key).or_default())
    }
}

/// A connection for a stream, its place among others, and where the stream takes it.
type ForStream = (Secured, budget::LanePlace, tokio::sync::mpsc::Sender<Lane>);

async fn say_yes(words: &mut PeerStream) {
    // When the opener does not hear it, it does not come either.
    let _ = words.send.write_all(&[Answer::Connected.encode()]).await;
}

async fn say_no(mut words: PeerStream, answer: Answer) {
    debug!(answer = answer.as_str(), "a peer gets no lane");
    let said = async {
        words.send.write_all(&[answer.encode()]).await?;
        words.send.finish().map_err(io::Error::other)
    };
    if said.await.is_ok() {
        words.close_in_order();
    }
}

/// Words about lanes go before bytes of streams, which wait for them.
fn hurry(send: &SendStream) {
    // It can only fail on a stream that has ended.
    let _ = send.set_priority(1);
}

fn ip_of(way: &TransportAddr) -> Option<SocketAddr> {
    match way {
        TransportAddr::Ip(address) => Some(*address),
        _ => None,
    }
}

/// What the socket of a lane gets, on both sides.
fn tune_lane(stream: &TcpStream) -> io::Result<()> {
    edgemesh_sockets::tune(stream)?;
    // No time-out for what is not acknowledged: the kernel would count that of a reader who
    // does not read, and the words about the lane tell the two apart.
    //
    // Not every kernel has the congestion control.
    let _ = SockRef::from(stream).set_tcp_congestion(CONGESTION_CONTROL);
    Ok(())
}

//! Takes in the TCP connections that peers make for lanes, and nobody else's.
//!
//! Who comes has to prove the key of a believed MeshNode and to bring a token that is
//! expected from that very peer, within seconds; there are bounds for how many may try.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::handshake::{HandshakeFault, Secured};
use super::{Carrier, tune_lane};
use crate::address_places::{AddressPlaces, Place};

/// Connections in all that have not proved a key and brought a token yet.
const IN_ALL: usize = 128;
/// Of these, from one address: behind one NAT may be many nodes.
const PER_ADDRESS: usize = 32;
/// How long a connection may take for that.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Between two attempts to open a socket, and after a failure to accept.
const AGAIN: Duration = Duration::from_secs(1);
/// Attempts after which it is told that there is none: an agent that hands over has the port
/// until its connections have had their time.
const TOLD_AFTER: u32 = 30;
/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 128;
/// Connections from the relay's door that wait to be taken.
const AT_THE_DOOR: usize = 16;

/// By which others hand over connections that begin as those for lanes do.
pub(crate) type SideDoor = mpsc::Sender<TcpStream>;

/// The other end of a [`SideDoor`].
pub(super) type SideEntrance = mpsc::Receiver<TcpStream>;

/// A door beside the listener's own.
pub(crate) fn side_door() -> (SideDoor, SideEntrance) {
    mpsc::channel(AT_THE_DOOR)
}

/// Takes connections at `addresses` and from `side`, until `stop`.
pub(crate) async fn keep_listening(
    carrier: Arc<Carrier>,
    addresses: Vec<SocketAddr>,
    mut side: SideEntrance,
    stop: CancellationToken,
) {
    let (into, mut accepted) = mpsc::channel(1);
    let places = AddressPlaces::new(IN_ALL, PER_ADDRESS);
    let mut tasks = JoinSet::new();
    for address in addresses {
        tasks.spawn(accept_at(address, into.clone()));
    }
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if let Err(panic) = ended {
                    error!(%panic, "a task of the listener for lanes panicked");
                }
                continue;
            }
            Some(stream) = accepted.recv() => stream,
            Some(stream) = side.recv() => stream,
        };
        let from = stream.peer_addr().map(|from| from.ip());
        match from.map(|from| places.take(from)) {
            Ok(Some(place)) => {
                tasks.spawn(receive(Arc::clone(&carrier), stream, place));
            }
            Ok(None) => carrier.counters.handshake_refused(),
            Err(error) => debug!(%error, "a connection was gone before it was taken"),
        }
    }
    tasks.shutdown().await;
}

/// Accepts at one address. A port that somebody else has is tried again: peers that cannot
/// dial this node are dialled by it.
async fn accept_at(address: SocketAddr, into: mpsc::Sender<TcpStream>) {
    let mut attempts = 0;
    let listener = loop {
        attempts += 1;
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) if attempts == TOLD_AFTER => {
                warn!(%address, %error, "no TCP socket for lanes there; it is tried again, and \
                      what peers move goes by QUIC unless this node can dial them");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    };
    info!(%address, "peers may dial this node for lanes");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if into.send(stream).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(%address, %error, "connections for lanes cannot be taken; it is tried again");
                sleep(AGAIN).await;
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket: Socket = edgemesh_sockets::open(Domain::for_address(address), Type::STREAM)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections that have ended keep a port for a minute otherwise.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn receive(carrier: Arc<Carrier>, stream: TcpStream, place: Place) {
    match timeout(ARRIVAL, arrive(&carrier, stream)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            if matches!(error, HandshakeFault::Tls(_)) {
                carrier.counters.stranger();
            }
            let error: &dyn std::error::Error = &error;
            debug!(error, "a connection did not become a lane");
        }
        Err(_) => debug!("a connection took too long to become a lane"),
    }
    drop(place);
}

async fn arrive(carrier: &Carrier, stream: TcpStream) -> Result<(), HandshakeFault> {
    tune_lane(&stream)?;
    let mut secured = Secured::accepted(stream, Arc::clone(&carrier.listener_tls)).await?;
    let token = secured.token().await?;
    let Some(waiting) = carrier.lobby.find(&token, &secured.key) else {
        return Err(HandshakeFault::NotExpected);
    };
    secured.open().await?;
    waiting.give(secured);
    Ok(())
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;

//! Opening a stream to an endpoint of another node.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::carry::{Broken, Way, carry};
use crate::counters::Going;
use crate::fault::OpenFault;
use crate::peer_stream::PeerStream;
use crate::session::{Session, StreamOfSession};
use crate::tcp_carrier::{Carrier, Lanes, Mover};
use edgemesh_sockets::ResetOnDrop;
use edgemesh_wire::{Answer, Request};

/// A stream of a peer's session, not yet asked for anything, with the places that it takes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: PeerStream,
    of: StreamOfSession,
    places: [OwnedSemaphorePermit; 2],
    going: Going,
}

impl Opened {
    pub(crate) fn new(
        stream: PeerStream,
        of: StreamOfSession,
        places: [OwnedSemaphorePermit; 2],
        going: Going,
    ) -> Self {
        Self {
            stream,
            of,
            places,
            going,
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        self.of.session()
    }
}

/// A connection to an endpoint of another node. Dropped before it was carried to its end, it
/// is reset.
#[derive(Debug)]
pub struct TunnelStream {
    stream: PeerStream,
    of: StreamOfSession,
    carrier: Option<Arc<Carrier>>,
    _places: [OwnedSemaphorePermit; 2],
    going: Going,
    _tcp: Going,
}

impl TunnelStream {
    /// Carries `client`'s connection over this stream until both sides have ended their part,
    /// or one broke it; then the other is reset, too. `moved` is told of every byte.
    ///
    /// # Errors
    ///
    /// Which side broke it.
    pub async fn carry(
        self,
        client: ResetOnDrop,
        moved: impl Fn(Way, usize),
    ) -> Result<(), Broken> {
        let counters = self.going.counters();
        let count = |way, bytes| {
            match way {
                Way::IntoTunnel => counters.went(bytes),
                Way::OutOfTunnel => counters.came(bytes),
            }
            moved(way, bytes);
        };
        let lanes = match &self.carrier {
            Some(carrier) => Lanes::Asked(Mover::new(
                Arc::clone(carrier),
                Arc::clone(self.of.session()),
                self.stream.number(),
            )),
            None => Lanes::None,
        };
        carry(client, self.stream, lanes, count).await
    }
}

/// Asks for an endpoint and waits for the answer. `carrier` is the second one, if there is.
pub(crate) async fn connect(
    mut opened: Opened,
    request: &Request,
    carrier: Option<Arc<Carrier>>,
) -> Result<TunnelStream, OpenFault> {
    ask(&mut opened.stream, request).await?;
    let mut answer = [0; 1];
    opened
        .stream
        .recv
        .read_exact(&mut answer)
        .await
        .map_err(|_| OpenFault::PeerDown)?;
    let answer = Answer::decode(answer[0]).map_err(|error| {
        opened.session().offended(&error);
        OpenFault::Offence
    })?;
    match OpenFault::of(answer) {
        Some(fault) => Err(fault),
        None => Ok(TunnelStream {
            stream: opened.stream,
            of: opened.of,
            carrier,
            _places: opened.places,
            _tcp: opened.going.counters().tcp(),
            going: opened.going,
        }),
    }
}

/// Writes the request.
pub(crate) async fn ask(stream: &mut PeerStream, request: &Request) -> Result<(), OpenFault> {
    // Names that are none in Kubernetes never become a portal.
    let bytes = request.encode().map_err(|_| OpenFault::NotAnEndpoint)?;
    stream
        .send
        .write_all(&bytes)
        .await
        .map_err(|_| OpenFault::PeerDown)
}

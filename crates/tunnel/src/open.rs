//! Opening a stream to an endpoint of another node.

use std::io;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::carry::{Broken, Way, carry};
use crate::counters::Going;
use crate::course::Course;
use crate::fault::OpenFault;
use crate::link::Link;
use crate::peer_stream::PeerStream;
use crate::resume::{NotResumed, Resumed, resume};
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
    link: Arc<Link>,
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
        mut self,
        client: ResetOnDrop,
        moved: impl Fn(Way, usize),
    ) -> Result<(), Broken> {
        let counters = Arc::clone(self.going.counters());
        let count = |way, bytes| {
            match way {
                Way::IntoTunnel => counters.went(bytes),
                Way::OutOfTunnel => counters.came(bytes),
            }
            moved(way, bytes);
        };
        let name = self.of.session().name_of(self.stream.number());
        let mut course = Course::new(counters.kept.clone());
        let mut may_resume = name.is_some();
        loop {
            match self.leg(&client, &mut course, may_resume, &count).await {
                Leg::Done(Ok(())) => break,
                Leg::Done(Err(broken)) => return Err(broken),
                Leg::Worn => {}
            }
            let Some(name) = name else { continue };
            let resumed = resume(&self.link, name, &mut course, client.stream()).await;
            match resumed {
                Ok(Resumed { stream, of }) => {
                    counters.stream_resumed();
                    debug!(service = %name.stream, "a stream goes on on another connection");
                    (self.stream, self.of) = (stream, of);
                }
                Err(NotResumed::Stays) if course.can_stay() => may_resume = false,
                Err(NotResumed::Stays) => {
                    let why = "what went beside its stream is not kept";
                    return Err(Broken::Tunnel(io::Error::other(why)));
                }
                Err(NotResumed::Over) => break,
                Err(NotResumed::Broken(broken)) => return Err(broken),
            }
        }
        client.close_in_order();
        self.stream.close_in_order();
        Ok(())
    }

    /// Carries it on its present connection, as long as that is not worn.
    async fn leg(
        &mut self,
        client: &ResetOnDrop,
        course: &mut Course,
        may_resume: bool,
        moved: impl Fn(Way, usize),
    ) -> Leg {
        let Self {
            stream, of, link, ..
        } = self;
        let session = of.session();
        let lanes = match &self.carrier {
            Some(carrier) => Lanes::Asked(Mover::new(
                Arc::clone(carrier),
                Arc::clone(session),
                stream.number(),
            )),
            None => Lanes::None,
        };
        let carried = carry(client.stream(), stream, course, lanes, session, moved);
        tokio::select! {
            biased;
            done = carried => Leg::Done(done),
            () = link.fresher_than(session), if may_resume => Leg::Worn,
        }
    }
}

/// How a stretch of a stream on one connection ended.
enum Leg {
    Done(Result<(), Broken>),
    /// There is a better connection.
    Worn,
}

/// Asks for an endpoint and waits for the answer. `link` is where the peer is, `carrier` the
/// second one, if there is.
pub(crate) async fn connect(
    mut opened: Opened,
    link: Arc<Link>,
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
            link,
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

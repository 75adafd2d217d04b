//! Opening a stream to an endpoint of another node.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use iroh::endpoint::SendStream;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::carry::{Broken, Way, carry};
use crate::counters::Going;
use crate::course::Course;
use crate::fault::OpenFault;
use crate::first_bytes::{FirstBytes, LentBytes};
use crate::inflow::Inflow;
use crate::link::Link;
use crate::peer_stream::PeerStream;
use crate::resume::{NotResumed, Resumed, resume};
use crate::session::{Session, StreamOfSession};
use crate::tcp_carrier::{Carrier, Lanes, Mover};
use edgemesh_sockets::{ResetOnDrop, take_seen};
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
    said: Said,
    _places: [OwnedSemaphorePermit; 2],
    going: Going,
    _tcp: Going,
}

impl TunnelStream {
    /// Carries `client`'s connection over this stream until both sides have ended their part,
    /// or one broke it; then the other is reset, too. `moved` is told of every byte. What came
    /// of the client's [`FirstBytes`] is still to be read from it.
    ///
    /// # Errors
    ///
    /// Which side broke it.
    pub async fn carry(
        mut self,
        mut client: ResetOnDrop,
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
        if let Said {
            lent: Some(lent),
            written,
        } = &self.said
        {
            let first = lent.bytes();
            take_seen(client.stream(), first.len()).map_err(Broken::Socket)?;
            count(Way::IntoTunnel, first.len());
            course.outbound.push(first.clone(), Instant::now());
            course.outbound.wrote(*written);
        }
        self.said = Said::default();
        let mut may_resume = name.is_some();
        loop {
            match self.leg(&mut client, &mut course, may_resume, &count).await {
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
        client: &mut ResetOnDrop,
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
        let carried = carry(client.stream_mut(), stream, course, lanes, session, moved);
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

/// What of a client's first bytes is on its way with the request.
#[derive(Debug, Default)]
struct Said {
    lent: Option<LentBytes>,
    /// How many of them the transport has taken.
    written: usize,
}

impl Said {
    /// It is certain that no endpoint has got any of them. Tells whether there were any.
    fn give_back(self) -> bool {
        self.lent.map(LentBytes::give_back).is_some()
    }
}

/// Why an endpoint is not connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotConnected {
    /// It is not to be had.
    Fault(OpenFault),
    /// It is to be asked for again, without first bytes.
    NotAtOnce,
}

impl From<OpenFault> for NotConnected {
    fn from(fault: OpenFault) -> Self {
        Self::Fault(fault)
    }
}

/// Asks for an endpoint and waits for the answer. `link` is where the peer is, `carrier` the
/// second one, if there is. The client's `first` bytes go along, those that come while the
/// answer is awaited, too; they are back unless an endpoint may have got them.
pub(crate) async fn connect(
    mut opened: Opened,
    link: Arc<Link>,
    request: &Request,
    carrier: Option<Arc<Carrier>>,
    first: &FirstBytes,
) -> Result<TunnelStream, NotConnected> {
    let request = encode(request)?;
    let mut said = Said::default();
    let PeerStream { send, recv, .. } = &mut opened.stream;
    let answer = tokio::select! {
        biased;
        never = speak(send, request, first, &mut said) => match never? {},
        answer = hear(recv) => answer?,
    };
    let answer = Answer::decode(answer).map_err(|error| {
        opened.session().offended(&error);
        OpenFault::Offence
    })?;
    let Some(fault) = OpenFault::of(answer) else {
        return Ok(TunnelStream {
            stream: opened.stream,
            of: opened.of,
            link,
            carrier,
            said,
            _places: opened.places,
            _tcp: opened.going.counters().tcp(),
            going: opened.going,
        });
    };
    if answer == Answer::Draining {
        opened.session().drains();
    }
    // Every answer but that one means that not one byte has gone to the endpoint.
    let has_spoken = said.give_back();
    match (answer, has_spoken) {
        (Answer::NotAtOnce, true) => Err(NotConnected::NotAtOnce),
        (Answer::NotAtOnce, false) => {
            let session = opened.session();
            session.offended(&"bytes were dropped that nobody had sent");
            Err(fault.into())
        }
        _ => Err(fault.into()),
    }
}

/// Writes the request, with the client's first bytes behind it, and these as soon as they come
/// when there are none yet.
async fn speak(
    send: &mut SendStream,
    request: Bytes,
    first: &FirstBytes,
    said: &mut Said,
) -> Result<Infallible, OpenFault> {
    said.lent = first.lend_now();
    let bytes = said.lent.as_ref().map(|lent| lent.bytes().clone());
    let mut pieces = [request, bytes.unwrap_or_default()];
    let length = pieces[0].len();
    let mut taken = 0;
    let mut pieces = &mut pieces[..];
    while !pieces.is_empty() {
        match send.write_many_chunks(&mut pieces).await {
            Ok(count) => taken += count,
            Err(_) => {
                // Without its request it goes nowhere.
                if taken < length
                    && let Some(lent) = said.lent.take()
                {
                    lent.give_back();
                }
                return Err(OpenFault::PeerDown);
            }
        }
        said.written = taken.saturating_sub(length);
    }
    if said.lent.is_none() {
        let lent = said.lent.insert(first.lend().await);
        let mut rest = lent.bytes().clone();
        while !rest.is_empty() {
            let written = send.write_many_chunks(&mut &mut [rest.clone()][..]).await;
            let written = written.map_err(|_| OpenFault::PeerDown)?;
            said.written += written;
            bytes::Buf::advance(&mut rest, written);
        }
    }
    std::future::pending().await
}

/// Reads the answer.
async fn hear(recv: &mut Inflow) -> Result<u8, OpenFault> {
    let mut answer = [0; 1];
    let read = recv.read_exact(&mut answer).await;
    read.map_err(|_| OpenFault::PeerDown)?;
    Ok(answer[0])
}

/// Writes a request that nothing goes along with.
pub(crate) async fn ask(stream: &mut PeerStream, request: &Request) -> Result<(), OpenFault> {
    let written = stream.send.write_chunk(encode(request)?).await;
    written.map_err(|_| OpenFault::PeerDown)
}

fn encode(request: &Request) -> Result<Bytes, OpenFault> {
    // Names that are none in Kubernetes never become a portal.
    let encoded = request.encode().map_err(|_| OpenFault::NotAnEndpoint)?;
    Ok(encoded.into())
}

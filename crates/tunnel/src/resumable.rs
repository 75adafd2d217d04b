//! The exit's side of TCP streams that go on on another connection with the peer: what is held
//! meanwhile, and by what name it is found again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use edgemesh_sockets::{ResetOnDrop, broken, watch_here};
use edgemesh_wire::{Answer, Resume, StreamName};
use iroh::EndpointId;
use iroh::endpoint::ReadError;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::carry::{Broken, Way, carry, read_error, stopped};
use crate::counters::{Counters, Going};
use crate::course::Course;
use crate::exit::Places;
use crate::peer_stream::PeerStream;
use crate::session::StreamOfSession;
use crate::tcp_carrier::Lanes;

/// The streams that may go on elsewhere: whose they are, and where to ask for them.
#[derive(Debug, Default)]
pub(crate) struct Resumables(Mutex<BTreeMap<Name, mpsc::Sender<Asked>>>);

/// A stream is found only by the peer that has opened it.
type Name = (EndpointId, StreamName);

/// Somebody asks for a stream.
#[derive(Debug)]
struct Asked {
    resume: Resume,
    reply: oneshot::Sender<Result<Held, Answer>>,
}

/// A stream's name in the table, until it is dropped.
#[derive(Debug)]
struct Registered {
    table: Arc<Resumables>,
    name: Name,
    asked: mpsc::Receiver<Asked>,
}

/// All that is left of a stream when it is taken from its connection.
#[derive(Debug)]
pub(crate) struct Held {
    socket: ResetOnDrop,
    course: Course,
    /// None when its connection was over already.
    registered: Option<Registered>,
    _places: Places,
    _tcp: Option<Going>,
    counters: Arc<Counters>,
}

impl Resumables {
    /// What is held of a stream of the peer at the other end of `of`.
    ///
    /// # Errors
    ///
    /// What to answer: there is no such stream (any more), or it has to stay where it is.
    pub(crate) async fn take(&self, of: &StreamOfSession, resume: &Resume) -> Result<Held, Answer> {
        let name = (of.session().connection.remote_id(), resume.name);
        let holder = self.streams().get(&name).cloned();
        let holder = holder.ok_or(Answer::NotAnEndpoint)?;
        let (reply, replied) = oneshot::channel();
        let asked = Asked {
            resume: *resume,
            reply,
        };
        let gone = Answer::NotAnEndpoint;
        holder.send(asked).await.map_err(|_| gone)?;
        replied.await.map_err(|_| gone)?
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<Name, mpsc::Sender<Asked>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// A stream that begins, of a connection with an endpoint, which is to have these bytes
    /// first.
    pub(crate) fn new(
        socket: TcpStream,
        first: Option<Bytes>,
        places: Places,
        tcp: Option<Going>,
        counters: &Arc<Counters>,
    ) -> Self {
        let mut course = Course::new(counters.kept.clone());
        if let Some(first) = first {
            counters.came(first.len());
            course.inbound.take(first.len(), vec![first]);
        }
        Self {
            socket: ResetOnDrop::new(socket),
            course,
            registered: None,
            _places: places,
            _tcp: tcp,
            counters: Arc::clone(counters),
        }
    }

    /// From now on it can be asked for by the name that `stream` gives it.
    pub(crate) fn register(
        mut self,
        table: &Arc<Resumables>,
        of: &StreamOfSession,
        stream: &PeerStream,
    ) -> Self {
        if let Some(name) = of.session().name_of(stream.number()) {
            let name = (of.session().connection.remote_id(), name);
            let (sender, asked) = mpsc::channel(1);
            table.streams().insert(name, sender);
            self.registered = Some(Registered {
                table: Arc::clone(table),
                name,
                asked,
            });
        }
        self
    }

    /// Position up to which the opener's bytes have come.
    pub(crate) fn received(&self) -> u64 {
        self.course.inbound.at()
    }

    /// From now on it goes on here by another stream, whose opener has its bytes up to
    /// `position`.
    pub(crate) fn go_on_at(&mut self, position: u64) {
        // Else it is watched from afar.
        let _ = watch_here(self.socket.stream_mut());
        self.course.go_on_at(position, Instant::now());
    }

    /// Carries it by `stream` to its end, or until it is asked for.
    pub(crate) async fn carry(
        mut self,
        mut stream: PeerStream,
        of: &StreamOfSession,
        offers_lanes: bool,
    ) {
        loop {
            match self.leg(&mut stream, of, offers_lanes).await {
                Leg::Done(Ok(())) => {
                    self.socket.close_in_order();
                    return stream.close_in_order();
                }
                Leg::Done(Err(broken)) => {
                    debug!(?broken, "a peer's connection was reset");
                    return;
                }
                Leg::Asked(Asked { resume, reply }) => {
                    if !self.course.meets(resume.received, resume.kept_from) {
                        if self.course.can_stay() {
                            let _ = reply.send(Err(Answer::Busy));
                            continue;
                        }
                        debug!("a peer's connection was reset: what went by a lane is not kept");
                        let _ = reply.send(Err(Answer::NotAnEndpoint));
                        return;
                    }
                    // Whoever asked may be gone by now, and asks again.
                    match reply.send(Ok(self)) {
                        Ok(()) | Err(Err(_)) => return,
                        Err(Ok(held)) => self = held,
                    }
                }
            }
        }
    }

    async fn leg(
        &mut self,
        stream: &mut PeerStream,
        of: &StreamOfSession,
        offers_lanes: bool,
    ) -> Leg {
        if !self.course.can_stay() {
            return self.wait(stream).await;
        }
        let session = of.session();
        let lanes = match offers_lanes {
            true => Lanes::Offered(session.lanes.register(stream.number())),
            false => Lanes::None,
        };
        let Self {
            socket,
            course,
            registered,
            counters,
            ..
        } = self;
        let moved = |way, bytes| match way {
            Way::IntoTunnel => counters.went(bytes),
            Way::OutOfTunnel => counters.came(bytes),
        };
        let carried = carry(socket.stream_mut(), stream, course, lanes, session, moved);
        tokio::select! {
            biased;
            done = carried => Leg::Done(done),
            asked = next_asked(registered) => Leg::Asked(asked),
        }
    }

    /// Carries nothing by `stream`: who has asked for it has left that, and asks again.
    async fn wait(&mut self, stream: &mut PeerStream) -> Leg {
        tokio::select! {
            biased;
            asked = next_asked(&mut self.registered) => Leg::Asked(asked),
            given_up = is_given_up(stream) => Leg::Done(Err(given_up)),
            error = broken(self.socket.stream()) => Leg::Done(Err(Broken::Socket(error))),
        }
    }
}

/// Waits until the opener resets the stream, or its connection is lost.
async fn is_given_up(stream: &mut PeerStream) -> Broken {
    match stream.recv.received_reset().await {
        Ok(Some(code)) => read_error(ReadError::Reset(code)),
        // It has come to its end, which says nothing about the other direction.
        Ok(None) => stopped(stream.send.stopped().await),
        Err(error) => read_error(error.into()),
    }
}

/// How a stretch of a stream on one connection ended.
enum Leg {
    Done(Result<(), Broken>),
    Asked(Asked),
}

async fn next_asked(registered: &mut Option<Registered>) -> Asked {
    let asked = match registered {
        Some(Registered { asked, .. }) => asked.recv().await,
        None => None,
    };
    match asked {
        Some(asked) => asked,
        // The table keeps the other end as long as it is registered.
        None => std::future::pending().await,
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.streams().remove(&self.name);
    }
}

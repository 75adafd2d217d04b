//! The exit: connects peers with endpoints of this node, and with nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use edgemesh_catalog::Protocol;
use edgemesh_plan::{Exits, NotExitable};
use edgemesh_sockets::{EndpointAddr, OutwardSockets};
use edgemesh_wire::{
    Answer, Move, REQUEST_HEADER, ReadUpTo, Request, Resume, WireError, request_length,
};
use futures_util::FutureExt;
use iroh::endpoint::ReadExactError;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::counters::Counters;
use crate::exit_flow::ExitFlow;
use crate::inflow::Inflow;
use crate::peer_stream::PeerStream;
use crate::resumable::{Held, Resumables};
use crate::session::StreamOfSession;
use crate::settings::{Limits, Timing};
use crate::tcp_carrier::Carrier;

/// Bytes of a client's that are looked at before there is an endpoint for them.
const FIRST: usize = 64 * 1024;

/// Connects peers with endpoints of this node.
#[derive(Debug)]
pub(crate) struct Exit {
    exits: watch::Receiver<Arc<Exits>>,
    sockets: OutwardSockets,
    timing: Timing,
    places: Arc<Semaphore>,
    draining: AtomicBool,
    /// The second carrier, unless it is off.
    carrier: Option<Arc<Carrier>>,
    /// TCP streams, which may go on on other connections.
    resumables: Arc<Resumables>,
    pub(crate) counters: Arc<Counters>,
}

/// How many streams a peer may have served.
#[derive(Clone, Debug)]
pub(crate) struct Quota(Arc<Semaphore>);

impl Quota {
    pub(crate) fn of_one_peer(limits: &Limits) -> Self {
        Self(Arc::new(Semaphore::new(limits.streams_in_per_peer)))
    }
}

/// Places taken by one stream.
#[derive(Debug)]
pub(crate) struct Places {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// What an endpoint was reached by.
enum Reached {
    /// With what the client has said by then, as far as it was looked at.
    Tcp(TcpStream, Option<Bytes>),
    Udp(UdpSocket),
}

impl Exit {
    pub(crate) fn new(
        exits: watch::Receiver<Arc<Exits>>,
        sockets: OutwardSockets,
        timing: Timing,
        limits: &Limits,
        carrier: Option<Arc<Carrier>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            carrier,
            exits,
            sockets,
            timing,
            places: Arc::new(Semaphore::new(limits.streams_in)),
            draining: AtomicBool::new(false),
            resumables: Arc::default(),
            counters,
        }
    }

    /// Whether no new streams are taken any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on takes no new streams.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Serves one stream of a peer to its end.
    pub(crate) async fn serve(&self, mut stream: PeerStream, of: StreamOfSession, quota: Quota) {
        let _going = self.counters.serving();
        let request = match timeout(self.timing.request, read_opening(&mut stream.recv)).await {
            Ok(Ok(Opening::Request(request))) => request,
            Ok(Ok(Opening::Move(asked))) => return self.agree(asked, stream, &of).await,
            Ok(Ok(Opening::Resume(asked))) => return self.resume(asked, stream, &of).await,
            Ok(Ok(Opening::ReadUpTo(asked))) => {
                return self.tell_when_reached(asked, stream, &of).await;
            }
            Ok(Err(NoRequest::Broken(error))) => {
                of.session().offended(&error);
                return self.refuse(stream, Answer::Malformed).await;
            }
            // An opener may give up at any moment, as it does while the network is away.
            Ok(Err(NoRequest::GivenUp)) => return,
            // Those who move much may hold up what an honest opener has to say.
            Err(_) => return self.refuse(stream, Answer::Failed).await,
        };
        // From here on, so that an agent that ends does not overlook one that is being dialled.
        let tcp = (request.service_port.protocol == Protocol::Tcp).then(|| self.counters.tcp());
        let reached = async {
            let places = self.take_places(quota)?;
            self.authorize(&request)?;
            Ok::<_, Answer>((self.reach(&request, &mut stream.recv).await?, places))
        };
        let (reached, places) = match reached.await {
            Ok(reached) => reached,
            Err(answer) => {
                debug!(service = %request.service_port, endpoint = %request.endpoint,
                    answer = answer.as_str(), "a peer's request was refused");
                return self.refuse(stream, answer).await;
            }
        };
        self.counters.answer_given(Answer::Connected);
        if write_answer(&mut stream, Answer::Connected).await.is_err() {
            return;
        }
        match reached {
            Reached::Tcp(socket, first) => {
                let held = Held::new(socket, first, places, tcp, &self.counters);
                let held = held.register(&self.resumables, &of, &stream);
                held.carry(stream, &of, self.carrier.is_some()).await;
            }
            Reached::Udp(socket) => {
                ExitFlow::new(socket, stream, &of, &self.counters)
                    .run(self.timing.udp_idle)
                    .await;
            }
        }
    }

    fn take_places(&self, quota: Quota) -> Result<Places, Answer> {
        if self.is_draining() {
            return Err(Answer::Draining);
        }
        let busy = |_| Answer::Busy;
        Ok(Places {
            _of_peer: quota.0.try_acquire_owned().map_err(busy)?,
            _of_all: Arc::clone(&self.places).try_acquire_owned().map_err(busy)?,
        })
    }

    /// Whether what is asked for is an endpoint of this node that peers may come to.
    fn authorize(&self, request: &Request) -> Result<(), Answer> {
        let exits = Arc::clone(&self.exits.borrow());
        let allowed = exits.may_exit(&request.service_port, request.endpoint);
        allowed.map_err(|reason| match reason {
            NotExitable::NotAnEndpoint => Answer::NotAnEndpoint,
            NotExitable::Filtered => Answer::Filtered,
        })
    }

    async fn reach(&self, request: &Request, recv: &mut Inflow) -> Result<Reached, Answer> {
        let endpoint = EndpointAddr(request.endpoint);
        match request.service_port.protocol {
            Protocol::Tcp => self.reach_tcp(endpoint, recv).await,
            Protocol::Udp => self
                .sockets
                .connect_udp(endpoint)
                .map(Reached::Udp)
                .map_err(|error| answer_for(&error)),
            Protocol::Sctp => Err(Answer::NotAnEndpoint),
        }
    }

    async fn reach_tcp(
        &self,
        endpoint: EndpointAddr,
        recv: &mut Inflow,
    ) -> Result<Reached, Answer> {
        let mut first = recv.piece(FIRST).now_or_never().and_then(bytes_of);
        let has_spoken = first.is_some();
        let connecting = async {
            if has_spoken {
                self.sockets.connect_tcp_to_send(endpoint).await
            } else {
                self.sockets.connect_tcp(endpoint).await
            }
        };
        let connected = tokio::select! {
            biased;
            connected = timeout(self.timing.dial, connecting) => connected,
            () = waits_with_bytes(recv, &mut first, self.timing.at_once) => {
                return Err(Answer::NotAtOnce);
            }
        };
        match connected {
            Ok(Ok(stream)) => Ok(Reached::Tcp(stream, first)),
            Ok(Err(error)) => Err(answer_for(&error)),
            Err(_) => Err(Answer::TimedOut),
        }
    }

    /// A peer wants one of its streams to go on on this one.
    async fn resume(&self, asked: Resume, mut stream: PeerStream, of: &StreamOfSession) {
        let mut held = match self.resumables.take(of, &asked).await {
            Ok(held) => held,
            Err(answer) => return self.refuse(stream, answer).await,
        };
        held.go_on_at(asked.received);
        let mut words = vec![Answer::Connected.encode()];
        words.extend(held.received().to_be_bytes());
        // Where it is not heard, the opener asks again, and on another stream.
        let _ = stream.send.write_all(&words).await;
        held.carry(stream, of, self.carrier.is_some()).await;
    }

    /// A peer wants a lane for one of its streams.
    async fn agree(&self, asked: Move, words: PeerStream, of: &StreamOfSession) {
        match &self.carrier {
            Some(carrier) => carrier.agree(asked, words, of.session()).await,
            None => self.refuse(words, Answer::Filtered).await,
        }
    }

    /// A peer wants to know when one of the streams with it was read up to a position.
    async fn tell_when_reached(&self, asked: ReadUpTo, words: PeerStream, of: &StreamOfSession) {
        let Some(reading) = of.session().readings.of(asked.stream) else {
            // It has not begun to be read, or is over, which the peer learns by itself.
            return self.say_at_last(words, Answer::NotAnEndpoint).await;
        };
        tokio::select! {
            biased;
            () = reading.reached(asked.position) => {}
            // Who asked has given up.
            _ = words.send.stopped() => return,
        }
        self.say_at_last(words, Answer::Connected).await;
    }

    /// Says no. Nothing more is read, and what was sent after the request is dropped.
    async fn refuse(&self, stream: PeerStream, answer: Answer) {
        self.counters.answer_given(answer);
        self.say_at_last(stream, answer).await;
    }

    /// Says `answer` and nothing more.
    async fn say_at_last(&self, mut stream: PeerStream, answer: Answer) {
        let said = async {
            write_answer(&mut stream, answer).await?;
            stream.send.finish().map_err(io::Error::other)?;
            // The other end asks again elsewhere as soon as it has read the answer; the
            // stream is kept until then, for a reset would overtake it.
            stream.send.stopped().await.map_err(io::Error::other)
        };
        if timeout(self.timing.request, said)
            .await
            .is_ok_and(|said| said.is_ok())
        {
            stream.recv.stop(crate::codes::RESET);
            stream.close_in_order();
        }
    }
}

/// Waits until an endpoint has not accepted `at_once`, and the client's first bytes are there.
async fn waits_with_bytes(recv: &mut Inflow, first: &mut Option<Bytes>, at_once: Duration) {
    sleep(at_once).await;
    if first.is_none() {
        *first = bytes_of(recv.piece(FIRST).await);
    }
    if first.is_none() {
        // The stream is over. Who reads on learns of it.
        std::future::pending::<()>().await;
    }
}

fn bytes_of(read: io::Result<Option<Bytes>>) -> Option<Bytes> {
    read.ok().flatten()
}

async fn write_answer(stream: &mut PeerStream, answer: Answer) -> io::Result<()> {
    Ok(stream.send.write_all(&[answer.encode()]).await?)
}

/// Why there is no request on a stream.
enum NoRequest {
    /// What is there is none.
    Broken(WireError),
    /// The opener has reset the stream, or the connection is lost.
    GivenUp,
}

impl From<ReadExactError> for NoRequest {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Broken(WireError::Length("request")),
            ReadExactError::ReadError(_) => Self::GivenUp,
        }
    }
}

/// What a stream begins with.
enum Opening {
    Request(Request),
    Move(Move),
    Resume(Resume),
    ReadUpTo(ReadUpTo),
}

async fn read_opening(recv: &mut Inflow) -> Result<Opening, NoRequest> {
    let mut header = [0; REQUEST_HEADER];
    recv.read_exact(&mut header).await?;
    let length = request_length(header).map_err(NoRequest::Broken)?;
    let mut body = vec![0; length];
    recv.read_exact(&mut body).await?;
    let opening = if Move::is_one(&body) {
        Move::decode(&body).map(Opening::Move)
    } else if Resume::is_one(&body) {
        Resume::decode(&body).map(Opening::Resume)
    } else if ReadUpTo::is_one(&body) {
        ReadUpTo::decode(&body).map(Opening::ReadUpTo)
    } else {
        Request::decode(&body).map(Opening::Request)
    };
    opening.map_err(NoRequest::Broken)
}

fn answer_for(error: &io::Error) -> Answer {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Answer::Refused,
        ErrorKind::TimedOut => Answer::TimedOut,
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::PermissionDenied => Answer::Unreachable,
        _ => Answer::Failed,
    }
}

//! A UDP flow as the entry uses it: datagrams go in and come out without waiting.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use edgemesh_wire::{Answer, Request};
use iroh::endpoint::ReadError;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::codes;
use crate::counters::{Counters, DatagramDropped};
use crate::datagram_traffic::NotSent;
use crate::fault::OpenFault;
use crate::inflow::Inflow;
use crate::message_stream::{MessageQueue, MessageReader, MessageWriter, Receipts};
use crate::open::{Opened, ask};
use crate::peer_stream::PeerStream;
use crate::session::Session;

/// Bytes of datagrams kept for a flow whose way to the peer is still being made.
const MOST_EARLY: usize = 512 * 1024;
/// What a kept datagram costs besides its bytes.
const EACH: usize = 64;
/// Bytes of answers kept until somebody takes them.
const MOST_ANSWERS: usize = 1 << 20;

/// One client's datagrams to an endpoint of another node, and the answers. Dropped, the flow
/// ends at the exit, too.
#[derive(Debug)]
pub struct UdpFlow {
    shared: Arc<Shared>,
    _ends: DropGuard,
}

/// What became of a datagram that could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFault {
    /// More are waiting than are kept; it is dropped, and counted.
    Full,
    /// The flow has ended.
    Ended(OpenFault),
}

#[derive(Debug)]
struct Shared {
    counters: Arc<Counters>,
    /// The way, once there is one.
    way: OnceLock<FlowWay>,
    early: Mutex<Early>,
    answers: Mutex<AnswersIn>,
    news: Notify,
    ended: OnceLock<OpenFault>,
}

#[derive(Debug)]
struct FlowWay {
    session: Arc<Session>,
    number: u64,
    large: MessageQueue,
}

#[derive(Debug, Default)]
struct Early {
    datagrams: Vec<Bytes>,
    bytes: usize,
    /// The way is there; nothing is kept any more.
    over: bool,
}

#[derive(Debug, Default)]
struct AnswersIn {
    datagrams: VecDeque<Bytes>,
    bytes: usize,
}

impl UdpFlow {
    /// A flow, and the task that makes and keeps its way.
    pub(crate) fn new(
        request: Request,
        counters: Arc<Counters>,
        open: impl Future<Output = Result<Opened, OpenFault>> + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            counters,
            way: OnceLock::new(),
            early: Mutex::default(),
            answers: Mutex::default(),
            news: Notify::new(),
            ended: OnceLock::new(),
        });
        let ending = CancellationToken::new();
        let flow = Self {
            shared: Arc::clone(&shared),
            _ends: ending.clone().drop_guard(),
        };
        let task = async move {
            tokio::select! {
                biased;
                () = ending.cancelled() => {}
                fault = run(&shared, &request, open) => shared.end(fault),
            }
        };
        (flow, task)
    }

    /// Sends a datagram, or drops it as networks do.
    ///
    /// # Errors
    ///
    /// When it was dropped, or the flow has ended.
    pub fn send(&self, datagram: &[u8]) -> Result<(), SendFault> {
        if let Some(fault) = self.shared.ended.get() {
            return Err(SendFault::Ended(*fault));
        }
        match self.shared.way.get() {
            Some(way) => way.send(datagram, &self.shared.counters),
            None => self.shared.keep_early(datagram),
        }
    }

    /// Waits until [`UdpFlow::try_receive`] has something to tell.
    pub async fn ready(&self) {
        loop {
            let news = self.shared.news.notified();
            if self.shared.ended.get().is_some() || !self.shared.answers().datagrams.is_empty() {
                return;
            }
            news.await;
        }
    }

    /// The next answer, or why there will be none; none while there is nothing to tell.
    #[must_use]
    pub fn try_receive(&self) -> Option<Result<Bytes, OpenFault>> {
        let mut answers = self.shared.answers();
        if let Some(next) = answers.datagrams.pop_front() {
            answers.bytes -= next.len();
            return Some(Ok(next));
        }
        self.shared.ended.get().copied().map(Err)
    }
}

impl FlowWay {
    fn send(&self, datagram: &[u8], counters: &Counters) -> Result<(), SendFault> {
        match self.session.send_datagram(self.number, datagram) {
            Ok(()) => Ok(()),
            Err(NotSent::Dropped) => Err(SendFault::Full),
            Err(NotSent::TooLarge) if self.large.push(datagram, counters) => Ok(()),
            Err(NotSent::TooLarge) => Err(SendFault::Full),
        }
    }
}

impl Shared {
    fn keep_early(&self, datagram: &[u8]) -> Result<(), SendFault> {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if early.over {
            drop(early);
            // Set before `over` is.
            return self.way.get().map_or(Err(SendFault::Full), |way| {
                way.send(datagram, &self.counters)
            });
        }
        let bytes = early.bytes + datagram.len() + EACH;
        if bytes > MOST_EARLY {
            self.counters.datagram_dropped(DatagramDropped::QueueFull);
            return Err(SendFault::Full);
        }
        early.bytes = bytes;
        early.datagrams.push(Bytes::copy_from_slice(datagram));
        Ok(())
    }

    /// The way is there: what waited goes first.
    fn set_way(&self, way: FlowWay) {
        let way = self.way.get_or_init(|| way);
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        (early.over, early.bytes) = (true, 0);
        for datagram in std::mem::take(&mut early.datagrams) {
            // What cannot be sent is counted where it is dropped.
            let _ = way.send(&datagram, &self.counters);
        }
    }

    fn answered(&self, payload: Bytes) {
        let mut answers = self.answers();
        if answers.bytes + payload.len() > MOST_ANSWERS {
            drop(answers);
            self.counters
                .datagram_dropped(DatagramDropped::ReceiverFull);
            return;
        }
        answers.bytes += payload.len();
        answers.datagrams.push_back(payload);
        drop(answers);
        self.news.notify_waiters();
    }

    fn end(&self, fault: OpenFault) {
        let _ = self.ended.set(fault);
        self.news.notify_waiters();
    }

    fn answers(&self) -> MutexGuard<'_, AnswersIn> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    /// What waited for a way that never was, and answers that nobody has taken, are lost.
    fn drop(&mut self) {
        let early = self.early.get_mut().map_or(0, |e| e.datagrams.len());
        let answers = self.answers.get_mut().map_or(0, |a| a.datagrams.len());
        self.counters
            .datagrams_were_dropped(DatagramDropped::FlowEnded, (early + answers) as u64);
    }
}

/// Opens the flow and serves it until it ends, for what is told.
async fn run(
    shared: &Arc<Shared>,
    request: &Request,
    open: impl Future<Output = Result<Opened, OpenFault>>,
) -> OpenFault {
    let mut opened = match open.await {
        Ok(opened) => opened,
        Err(fault) => return fault,
    };
    let session = Arc::clone(opened.session());
    let number = opened.stream.number();
    let sink = Arc::clone(shared);
    let _registered = session
        .flows
        .register(number, move |payload| sink.answered(payload));
    // The request goes first, for the datagrams make sense only after it; its answer is not
    // waited for.
    if let Err(fault) = ask(&mut opened.stream, request).await {
        return fault;
    }
    let (writer, large) = MessageWriter::new(Arc::clone(&shared.counters));
    shared.set_way(FlowWay {
        session: Arc::clone(&session),
        number,
        large,
    });
    let receipts = writer.receipts();
    let PeerStream { send, recv, .. } = &mut opened.stream;
    tokio::select! {
        biased;
        fault = receive(recv, receipts, shared, &session) => fault,
        error = writer.run(send) => fault_of_write(&error),
    }
}

async fn receive(
    recv: &mut Inflow,
    receipts: Arc<Receipts>,
    shared: &Shared,
    session: &Session,
) -> OpenFault {
    let mut answer = [0; 1];
    if let Err(error) = recv.read_exact(&mut answer).await {
        return match error {
            iroh::endpoint::ReadExactError::ReadError(error) => fault_of(&error),
            iroh::endpoint::ReadExactError::FinishedEarly(_) => OpenFault::Offence,
        };
    }
    match Answer::decode(answer[0]) {
        Ok(answer) => {
            if let Some(fault) = OpenFault::of(answer) {
                return fault;
            }
        }
        Err(error) => {
            session.offended(&error);
            return OpenFault::Offence;
        }
    }
    let mut messages = MessageReader::new(recv, receipts);
    loop {
        match messages.next().await {
            Ok(Some(payload)) => {
                shared.counters.datagram_came();
                shared.answered(payload);
            }
            // The exit saw nothing for too long; the next datagram opens another flow.
            Ok(None) => return OpenFault::TimedOut,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    session.offended(&error);
                    return OpenFault::Offence;
                }
                return error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<ReadError>())
                    .map_or(OpenFault::PeerDown, fault_of);
            }
        }
    }
}

fn fault_of(error: &ReadError) -> OpenFault {
    match error {
        ReadError::Reset(code) if *code == codes::FLOW_REFUSED => OpenFault::Refused,
        ReadError::Reset(_) => OpenFault::ExitFailed,
        ReadError::ConnectionLost(_) | ReadError::ClosedStream | ReadError::ZeroRttRejected => {
            OpenFault::PeerDown
        }
    }
}

fn fault_of_write(error: &io::Error) -> OpenFault {
    match error.kind() {
        io::ErrorKind::ConnectionReset => OpenFault::ExitFailed,
        _ => OpenFault::PeerDown,
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{ObjectName, Protocol, ServicePortName};

    use super::*;

    fn flow(counters: &Arc<Counters>) -> (UdpFlow, impl Future<Output = ()>) {
        let request = Request {
            service_port: ServicePortName {
                service: ObjectName::new("default", "dns"),
                port: "".into(),
                protocol: Protocol::Udp,
            },
            endpoint: ([10, 0, 0, 1], 53).into(),
        };
        UdpFlow::new(request, Arc::clone(counters), async {
            Err(OpenFault::PeerDown)
        })
    }

    #[tokio::test]
    async fn what_waited_for_a_way_that_is_not_to_be_had_is_counted() {
        let counters = Arc::new(Counters::default());
        let (flow, task) = flow(&counters);
        flow.send(b"one").unwrap();
        flow.send(b"two").unwrap();
        task.await;
        assert_eq!(
            flow.send(b"three"),
            Err(SendFault::Ended(OpenFault::PeerDown))
        );
        drop(flow);
        assert_eq!(counters.datagrams_dropped(DatagramDropped::FlowEnded), 2);
    }

    #[tokio::test]
    async fn answers_that_nobody_takes_are_counted_when_the_flow_is_let_go() {
        let counters = Arc::new(Counters::default());
        let (flow, task) = flow(&counters);
        let sink = Arc::clone(&flow.shared);
        for answer in ["one", "two", "three"] {
            sink.answered(Bytes::from_static(answer.as_bytes()));
        }
        assert_eq!(flow.try_receive(), Some(Ok(Bytes::from_static(b"one"))));
        drop((flow, task));
        sink.answered(Bytes::from_static(b"late"));
        drop(sink);
        assert_eq!(counters.datagrams_dropped(DatagramDropped::FlowEnded), 3);
    }
}

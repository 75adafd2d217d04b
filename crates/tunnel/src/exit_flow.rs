//! A peer's UDP flow at the exit: one socket towards the endpoint.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use edgemesh_sockets::{await_datagram, receive_now, send_now, with_datagram_buffer};
use tokio::net::UdpSocket;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use crate::codes;
use crate::counters::{Counters, DatagramDropped};
use crate::datagram_traffic::NotSent;
use crate::flow_table::Registered;
use crate::message_stream::{MessageReader, MessageWriter};
use crate::peer_stream::PeerStream;
use crate::session::{Session, StreamOfSession};

/// Answers passed on before others get their turn.
const ANSWERS_AT_ONCE: usize = 64;

/// A flow: datagrams of one client behind a peer to one endpoint, and the answers.
pub(crate) struct ExitFlow {
    socket: Arc<UdpSocket>,
    stream: PeerStream,
    session: Arc<Session>,
    counters: Arc<Counters>,
    /// Something moved since it was last looked.
    used: Arc<AtomicBool>,
    _registered: Registered,
}

/// Why a flow ended.
enum Ended {
    /// The entry has no more use for it.
    ByEntry,
    /// The endpoint refused.
    Refused,
    /// Nothing moved for too long.
    Idle,
    /// The stream, or what came on it, is broken.
    Broken(io::Error),
}

impl ExitFlow {
    pub(crate) fn new(
        socket: UdpSocket,
        stream: PeerStream,
        of: &StreamOfSession,
        counters: &Arc<Counters>,
    ) -> Self {
        let session = Arc::clone(of.session());
        let socket = Arc::new(socket);
        let used = Arc::new(AtomicBool::new(true));
        let registered = {
            let (socket, counters, used) =
                (Arc::clone(&socket), Arc::clone(counters), Arc::clone(&used));
            session.flows.register(stream.number(), move |payload| {
                used.store(true, Ordering::Relaxed);
                to_endpoint(&socket, &payload, &counters);
            })
        };
        Self {
            socket,
            stream,
            session,
            counters: Arc::clone(counters),
            used,
            _registered: registered,
        }
    }

    /// Runs until the flow ends.
    pub(crate) async fn run(mut self, idle: Duration) {
        let number = self.stream.number();
        let ended = {
            let PeerStream { send, recv, .. } = &mut self.stream;
            let (writer, queue) = MessageWriter::new(Arc::clone(&self.counters));
            let answers = Answers {
                number,
                socket: &self.socket,
                session: &self.session,
                counters: &self.counters,
                used: &self.used,
                large: queue,
            };
            let messages = MessageReader::new(recv, writer.receipts());
            tokio::select! {
                biased;
                ended = read_large(messages, &self.socket, &self.counters, &self.used) => ended,
                ended = answers.run() => ended,
                error = writer.run(send) => Ended::Broken(error),
                () = idle_for(idle, &self.used) => Ended::Idle,
            }
        };
        match ended {
            Ended::ByEntry | Ended::Idle => {
                // The end is told by the end of the stream.
                let _ = self.stream.send.finish();
                self.stream.recv.stop(codes::RESET);
                self.stream.close_in_order();
            }
            Ended::Refused => self.stream.abort(codes::FLOW_REFUSED),
            Ended::Broken(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.session.offended(&error);
                }
            }
        }
    }
}

/// Passes on the datagrams that were too large for a packet.
async fn read_large(
    mut messages: MessageReader<'_>,
    socket: &UdpSocket,
    counters: &Counters,
    used: &AtomicBool,
) -> Ended {
    loop {
        match messages.next().await {
            Ok(Some(payload)) => {
                counters.datagram_came();
                used.store(true, Ordering::Relaxed);
                to_endpoint(socket, &payload, counters);
            }
            Ok(None) => return Ended::ByEntry,
            Err(error) => return Ended::Broken(error),
        }
    }
}

fn to_endpoint(socket: &UdpSocket, payload: &Bytes, counters: &Counters) {
    let sent = send_now(socket, payload).or_else(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Err(error),
        // The kernel tells of an earlier datagram's fate (it was refused, or too large for
        // the path) when the next one is sent, and does not send that. A refusal is learnt
        // from reading as well.
        _ => send_now(socket, payload),
    });
    if sent.is_err() {
        counters.datagram_dropped(DatagramDropped::ReceiverFull);
    }
}

/// What passes answers on.
struct Answers<'a> {
    number: u64,
    socket: &'a UdpSocket,
    session: &'a Session,
    counters: &'a Counters,
    used: &'a AtomicBool,
    large: crate::message_stream::MessageQueue,
}

impl Answers<'_> {
    async fn run(self) -> Ended {
        loop {
            if let Err(error) = await_datagram(self.socket).await {
                return Ended::Broken(error);
            }
            for _ in 0..ANSWERS_AT_ONCE {
                match with_datagram_buffer(|buffer| {
                    let n = receive_now(self.socket, buffer)?;
                    self.pass_on(&buffer[..n]);
                    Ok::<_, io::Error>(())
                }) {
                    Ok(()) => {}
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => break,
                        io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable => return Ended::Refused,
                        // Something about a single datagram, such as its size.
                        _ => {}
                    },
                }
            }
            consume_budget().await;
        }
    }

    fn pass_on(&self, payload: &[u8]) {
        self.used.store(true, Ordering::Relaxed);
        match self.session.send_datagram(self.number, payload) {
            // What is dropped is counted there.
            Ok(()) | Err(NotSent::Dropped) => {}
            Err(NotSent::TooLarge) => {
                self.large.push(payload, self.counters);
            }
        }
    }
}

async fn idle_for(idle: Duration, used: &AtomicBool) {
    while used.swap(false, Ordering::Relaxed) {
        sleep_until(Instant::now() + idle).await;
    }
}

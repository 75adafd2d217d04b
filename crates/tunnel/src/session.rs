//! One connection with a peer: its streams, its flows, and whether it still lives.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use edgemesh_wire::{Datagram, Hello, StreamName};
use futures_util::FutureExt;
use iroh::endpoint::{Connection, ConnectionError, RecvStream, Side, VarInt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::codes;
use crate::counters::{Counters, DatagramDropped};
use crate::datagram_traffic::{DatagramTraffic, NotSent};
use crate::exit::{Exit, Quota};
use crate::flow_table::FlowTable;
use crate::hello_stream;
use crate::movable::movable;
use crate::peer_stream::PeerStream;
use crate::read_ahead::BytesAhead;
use crate::readings::Readings;
use crate::tcp_carrier::LaneTable;

/// How often is looked for datagrams that have not come, or that nobody wants.
const SETTLE_EVERY: Duration = Duration::from_millis(500);
/// How often is looked whether anything was heard.
const LISTEN_EVERY: Duration = Duration::from_millis(500);
/// A connection that was silent for so long is worn: the transport begins to give up its ways
/// then. More than two keep-alives, and with the time between two looks as long as it takes
/// the transport.
const WORN_AFTER: Duration = Duration::from_millis(2000);
/// What the name of a connection is exported for (RFC 8446 section 7.5).
const NAME_LABEL: &[u8] = b"EXPORTER-edgemesh-stream-name";
/// Offences after which a connection is closed.
const MOST_OFFENCES: usize = 8;

/// A connection with a peer.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) flows: Arc<FlowTable>,
    /// Streams of the peer that may be given a lane.
    pub(crate) lanes: Arc<LaneTable>,
    /// How far this end has read its streams.
    pub(crate) readings: Readings,
    /// What of its streams was read beyond gaps.
    pub(crate) ahead: BytesAhead,
    counters: Arc<Counters>,
    hello: OnceLock<Hello>,
    /// Since when nothing is heard, once that is a while.
    quiet_since: Mutex<Option<Instant>>,
    /// A later run of the peer's agent has said hello.
    superseded: AtomicBool,
    /// It has been silent long enough to lose ways.
    worn: AtomicBool,
    /// The peer's agent takes no new streams any more.
    draining: AtomicBool,
    name: OnceLock<Option<[u8; StreamName::CONNECTION]>>,
    /// Rung when the peer says hello, falls silent or is heard again.
    changed: Arc<Notify>,
    /// Streams that go on, opened by either side.
    streams: AtomicUsize,
    offences: AtomicUsize,
    datagrams: DatagramTraffic,
}

/// A stream of the session that goes on.
#[derive(Debug)]
pub(crate) struct StreamOfSession(Arc<Session>);

impl StreamOfSession {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for StreamOfSession {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 && self.0.is_worn() {
            self.0.changed.notify_one();
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, streams) = (self.connection.stable_id(), self.streams());
        write!(f, "Session({number:#x}, {streams} streams)")
    }
}

/// What serving a session needs besides it.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) exit: Arc<Exit>,
    /// The peer's share of the exit.
    pub(crate) quota: Quota,
    /// Streams that may be under way on a connection, those being refused included.
    pub(crate) most_streams: usize,
    pub(crate) hello: Hello,
    pub(crate) quiet_after: Duration,
    pub(crate) unused_after: Option<Duration>,
}

impl Session {
    /// `changed` is rung when the peer says hello, falls silent or is heard again.
    pub(crate) fn new(
        connection: Connection,
        counters: Arc<Counters>,
        changed: Arc<Notify>,
    ) -> Arc<Self> {
        let datagrams = DatagramTraffic::new(&connection, Arc::clone(&counters));
        Arc::new(Self {
            connection,
            flows: Arc::default(),
            lanes: Arc::default(),
            readings: Readings::default(),
            ahead: BytesAhead::default(),
            datagrams,
            counters,
            hello: OnceLock::new(),
            quiet_since: Mutex::default(),
            superseded: AtomicBool::new(false),
            worn: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            name: OnceLock::new(),
            changed,
            streams: AtomicUsize::new(0),
            offences: AtomicUsize::new(0),
        })
    }

    /// Whether new streams may be opened on it.
    pub(crate) fn is_usable(&self) -> bool {
        !(self.is_closed() || self.is_quiet())
    }

    /// Whether it lives, and is with the last run of the peer's agent that is known.
    pub(crate) fn is_current(&self) -> bool {
        self.is_usable() && !self.is_superseded()
    }

    /// A later run of the peer's agent is there. This one may be carrying its last streams to
    /// their end, or be dead: others are preferred, and there is no patience when it falls
    /// silent. Yet as long as it lives there may be no other way: the transport goes on
    /// sending to where it is (see [`Session::is_hopeless`]).
    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Ordering::Relaxed);
        if self.is_quiet() {
            self.close_superseded();
        }
    }

    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    /// Whether it was silent for longer than the transport gives a way.
    ///
    /// It may be heard again, but it is not what it was: bytes that were under way may be sent
    /// anew only minutes later, and the two ends may not agree on which ways there are (noq
    /// 1.4 declares what was sent on a way lost when that is discarded, which waits for a
    /// round trip as long as the silence, or for a frame that is not repeated). Others are
    /// preferred, and its streams go on on them.
    pub(crate) fn is_worn(&self) -> bool {
        self.worn.load(Ordering::Relaxed)
    }

    /// The peer has refused a stream because its agent ends.
    pub(crate) fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the peer would refuse a new stream because its agent ends.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether another one, with the same run of the peer's agent, would be better.
    pub(crate) fn is_second_choice(&self) -> bool {
        self.is_superseded() || self.is_worn()
    }

    /// By what both ends know the stream `number`; none when the connection is over.
    pub(crate) fn name_of(&self, number: u64) -> Option<StreamName> {
        let name = self.name.get_or_init(|| {
            let mut name = [0; StreamName::CONNECTION];
            let exported = self
                .connection
                .export_keying_material(&mut name, NAME_LABEL, b"");
            exported.is_ok().then_some(name)
        });
        name.map(|connection| StreamName {
            connection,
            stream: number,
        })
    }

    /// Closes it, unless it is closed: the transport would forget why the peer closed it.
    pub(crate) fn close(&self, code: VarInt, why: &[u8]) {
        if !self.is_closed() {
            self.connection.close(code, why);
        }
    }

    /// Its place has been taken by another one, and nobody uses it.
    pub(crate) fn close_replaced(&self) {
        self.close(codes::SUPERSEDED, b"another connection has taken its place");
    }

    fn close_superseded(&self) {
        self.close(codes::SUPERSEDED, b"a later run of the agent is there");
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Whether the peer has closed it because its agent ends.
    pub(crate) fn said_farewell(&self) -> bool {
        matches!(
            self.connection.close_reason(),
            // 0 is what the transport itself says when it is closed as a whole.
            Some(ConnectionError::ApplicationClosed(close))
                if close.error_code == codes::ENDING || close.error_code == 0_u32.into()
        )
    }

    /// Whether nothing was heard of the peer for a while.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet_since().is_some()
    }

    /// Whether nothing is lost when it is given up, or nothing is to be hoped for any more.
    ///
    /// As long as one connection with a peer is there, the transport sends all that others
    /// need to begin on the path of that one (iroh 1.4, `selected_path` of a remote): a dead
    /// connection would keep a peer that has moved from being reached.
    pub(crate) fn is_hopeless(&self, after: Duration) -> bool {
        let quiet_since = *self.quiet_since();
        quiet_since.is_some_and(|since| self.streams() == 0 || since.elapsed() >= after)
    }

    /// Whether nothing was heard since before `moment`.
    pub(crate) fn fell_silent_before(&self, moment: Instant) -> bool {
        self.quiet_since().is_some_and(|since| since < moment)
    }

    fn quiet_since(&self) -> MutexGuard<'_, Option<Instant>> {
        let quiet_since = self.quiet_since.lock();
        quiet_since.unwrap_or_else(PoisonError::into_inner)
    }

    /// The run of the agent at the other end, once it has said hello.
    pub(crate) fn hello(&self) -> Option<Hello> {
        self.hello.get().copied()
    }

    /// Streams that go on.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Counts a stream, as long as the value lives.
    pub(crate) fn count_stream(self: &Arc<Self>) -> StreamOfSession {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamOfSession(Arc::clone(self))
    }

    /// The other end broke the protocol. It costs the stream; too often, the connection.
    pub(crate) fn offended(&self, how: &dyn fmt::Display) {
        self.counters.offence();
        debug!(%how, "the peer broke the protocol");
        if self.offences.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_OFFENCES {
            self.close(codes::OFFENCE, b"too many protocol errors");
        }
    }

    /// Sends a datagram of `flow` in a packet; keeps it for a moment when packets cannot go
    /// as fast.
    pub(crate) fn send_datagram(&self, flow: u64, payload: &[u8]) -> Result<(), NotSent> {
        self.datagrams.send(&self.connection, flow, payload)
    }

    /// Serves the connection until it is closed, by whomever.
    pub(crate) async fn serve(self: Arc<Self>, serving: Serving) {
        let mut streams = JoinSet::new();
        // However this ends: it may just be dropped.
        let ending = EndsDatagrams(&self);
        tokio::select! {
            biased;
            reason = self.connection.closed() => debug!(%reason, "connection with the peer closed"),
            () = self.say_hello(serving.hello) => {}
            () = self.accept_streams(&serving, &mut streams) => {}
            () = self.receive_hello() => {}
            () = self.receive_datagrams() => {}
            () = self.datagrams.send_waiting(&self.connection) => {}
            () = self.settle_datagrams() => {}
            () = self.watch(&serving) => {}
        }
        // Whatever still runs finds its stream lost; what has not noticed yet is ended.
        self.close(codes::ENDING, b"");
        drop(ending);
        streams.shutdown().await;
    }

    async fn say_hello(&self, hello: Hello) {
        let Err(error) = hello_stream::say(&self.connection, hello, &self.datagrams).await;
        debug!(%error, "the peer did not hear our hello, or hears no more of datagrams");
        std::future::pending::<()>().await;
    }

    async fn receive_hello(&self) {
        if let Ok(mut stream) = self.connection.accept_uni().await
            && let Err(error) = self.hear(&mut stream).await
        {
            self.offended(&error);
        }
        // No other stream of this kind is defined; transport limits keep them from coming.
        std::future::pending::<()>().await;
    }

    async fn hear(&self, stream: &mut RecvStream) -> io::Result<()> {
        let hello = hello_stream::hear(stream).await?;
        let _ = self.hello.set(hello);
        self.changed.notify_one();
        hello_stream::hear_tallies(stream, &self.datagrams).await
    }

    async fn accept_streams(self: &Arc<Self>, serving: &Serving, streams: &mut JoinSet<()>) {
        loop {
            tokio::select! {
                biased;
                Some(ended) = streams.join_next() => {
                    if let Err(panic) = ended {
                        error!(%panic, "a stream's task panicked; the stream was reset");
                    }
                }
                accepted = self.connection.accept_bi() => match accepted {
                    Ok(stream) if streams.len() >= serving.most_streams => {
                        drop(PeerStream::new(stream));
                        self.offended(&"more streams at once than any honest peer opens");
                    }
                    Ok(stream) => {
                        let exit = Arc::clone(&serving.exit);
                        let quota = serving.quota.clone();
                        let session = self.count_stream();
                        streams.spawn(movable(async move {
                            exit.serve(PeerStream::new(stream), session, quota).await;
                        }));
                    }
                    // The connection is closed, as `serve` learns.
                    Err(_) => std::future::pending().await,
                }
            }
        }
    }

    async fn receive_datagrams(&self) {
        while let Ok(bytes) = self.connection.read_datagram().await {
            self.datagram_came(bytes);
            tokio::task::coop::consume_budget().await;
        }
        std::future::pending::<()>().await;
    }

    fn datagram_came(&self, bytes: Bytes) {
        match Datagram::decode(bytes) {
            Ok(datagram) => {
                self.datagrams.came(&datagram);
                let dropped = self.flows.deliver(datagram, Instant::now().into_std());
                self.counters
                    .datagrams_were_dropped(DatagramDropped::NoFlow, dropped);
            }
            Err(error) => self.offended(&error),
        }
    }

    /// Counts datagrams that should have come by now, and drops those of flows that nobody has
    /// opened.
    async fn settle_datagrams(&self) {
        let mut ticks = interval(SETTLE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await.into_std();
            self.datagrams.settle(now);
            let expired = self.flows.expire(now);
            self.counters
                .datagrams_were_dropped(DatagramDropped::NoFlow, expired);
        }
    }

    /// Counts what is lost because the connection is over.
    fn end_datagrams(&self) {
        let heard = self.quiet_since().unwrap_or_else(Instant::now);
        self.datagrams.end_sending(heard.into_std());
        // Those that have come are the flows' still; what the flows do not take is not.
        while let Some(Ok(bytes)) = self.connection.read_datagram().now_or_never() {
            self.datagram_came(bytes);
        }
        self.datagrams.end_receiving();
        self.counters
            .datagrams_were_dropped(DatagramDropped::NoFlow, self.flows.end());
    }

    /// Notices when the peer falls silent and when it is heard again, and closes what nobody
    /// uses. Only who began the connection closes it, so that not both do at once.
    async fn watch(&self, serving: &Serving) {
        let mut ticks = interval(LISTEN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = (self.received(), Instant::now());
        let (mut looked, mut used) = (heard.1, heard.1);
        loop {
            ticks.tick().await;
            let (received, now) = (self.received(), Instant::now());
            // What kept this task from its turn has kept the transport from hearing, too.
            heard.1 += (now - looked).saturating_sub(2 * LISTEN_EVERY);
            looked = now;
            if received != heard.0 {
                heard = (received, now);
            }
            if now - heard.1 >= WORN_AFTER && !self.worn.swap(true, Ordering::Relaxed) {
                debug!("the peer is silent: the connection is to be replaced");
                self.changed.notify_one();
            }
            let quiet = now - heard.1 >= serving.quiet_after;
            if quiet != self.is_quiet() {
                *self.quiet_since() = quiet.then_some(heard.1);
                debug!(quiet, "the peer fell silent, or is heard again");
                self.changed.notify_one();
            }
            if quiet && self.is_superseded() {
                self.close_superseded();
            }
            if quiet && serving.exit.is_draining() {
                // This node is ending, and would wait for nobody.
                self.close(codes::ENDING, b"nothing was heard of you");
            }
            if self.streams() > 0 {
                used = now;
            }
            if let Some(unused_after) = serving.unused_after
                && self.connection.side() == Side::Client
                && now - used >= unused_after
            {
                self.close(codes::UNUSED, b"unused");
            }
        }
    }

    fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}

/// Ends a session's datagrams when it is dropped.
struct EndsDatagrams<'s>(&'s Session);

impl Drop for EndsDatagrams<'_> {
    fn drop(&mut self) {
        self.0.end_datagrams();
    }
}

//! What the tunnel counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use edgemesh_wire::Answer;

use crate::course::KeptBytes;
use crate::fault::OpenFault;

/// The tunnel's counters; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    opened: AtomicU64,
    open_failed: [AtomicU64; OpenFault::ALL.len()],
    answered: [AtomicU64; Answer::ALL.len()],
    streams_in: AtomicU64,
    streams_out: AtomicU64,
    /// TCP streams that go on: those from before the ending began, and those since.
    tcp: [AtomicU64; 2],
    ending: AtomicBool,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    datagrams_in: AtomicU64,
    datagrams_out: AtomicU64,
    datagrams_dropped: [AtomicU64; DatagramDropped::ALL.len()],
    offences: AtomicU64,
    strangers: AtomicU64,
    handshakes_refused: AtomicU64,
    connects_failed: AtomicU64,
    connected: AtomicU64,
    lanes: AtomicU64,
    lanes_made: AtomicU64,
    lanes_lost: AtomicU64,
    lanes_failed: AtomicU64,
    lane_bytes: AtomicU64,
    resumed: AtomicU64,
    /// What streams keep to send again.
    pub(crate) kept: KeptBytes,
}

/// Why the tunnel dropped a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatagramDropped {
    /// More were waiting for the peer than is kept.
    QueueFull,
    /// The client or endpoint did not take them as fast as they came.
    ReceiverFull,
    /// It came for a flow that nobody has opened, or that has ended.
    NoFlow,
    /// It is larger than any datagram may be.
    TooLarge,
    /// The way to the peer changed under it, and it does not fit any more.
    PathShrank,
    /// Its flow was refused, or ended, before it was sent, or taken by the client.
    FlowEnded,
    /// The connection with the peer ended before it was sent.
    ConnectionEnded,
    /// A peer sent it, and it has not come: the network lost it, or it came faster than it was
    /// read.
    Lost,
    /// It was sent in the last moments of a connection with a peer, or of a flow, and the peer
    /// was not told of it any more, or could not tell of it: it may have come.
    Unsettled,
}

impl DatagramDropped {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::ReceiverFull,
        Self::NoFlow,
        Self::TooLarge,
        Self::PathShrank,
        Self::FlowEnded,
        Self::ConnectionEnded,
        Self::Lost,
        Self::Unsettled,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ReceiverFull => "receiver_full",
            Self::NoFlow => "no_flow",
            Self::TooLarge => "too_large",
            Self::PathShrank => "path_shrank",
            Self::FlowEnded => "flow_ended",
            Self::ConnectionEnded => "connection_ended",
            Self::Lost => "lost",
            Self::Unsettled => "unsettled",
        }
    }
}

macro_rules! counted {
    ($($(#[$doc:meta])* $name:ident <- $add:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            }

            pub(crate) fn $add(&self) {
                self.$name.fetch_add(1, Ordering::Relaxed);
            }
        )*
    };
}

impl Counters {
    counted! {
        /// Streams opened to other nodes' endpoints so far.
        opened <- stream_opened;
        /// Frames, requests and streams of peers that broke the protocol so far.
        offences <- offence;
        /// Handshakes with those who proved a key that is no peer's, so far.
        strangers <- stranger;
        /// Handshakes refused because too many were under way, so far.
        handshakes_refused <- handshake_refused;
        /// Attempts to reach a peer that failed so far.
        connects_failed <- connect_failed;
        /// Connections with peers made so far, whoever began.
        connected <- peer_connected;
        /// TCP connections with peers that were lost while streams used them, so far. The
        /// streams went on by QUIC.
        lanes_lost <- lane_lost;
        /// Attempts to get a TCP connection for a stream that failed so far.
        lanes_failed <- lane_failed;
        /// TCP streams, opened by this node, that went on on another connection with the peer
        /// after it had been silent, so far.
        resumed <- stream_resumed;
    }

    /// Bytes that streams keep now, to send them again after the peer was silent.
    #[must_use]
    pub fn bytes_kept(&self) -> u64 {
        self.kept.count() as u64
    }

    /// Streams not to be had so far, for `fault`.
    #[must_use]
    pub fn open_failed(&self, fault: OpenFault) -> u64 {
        get(&self.open_failed[fault as usize])
    }

    /// Requests of peers answered so far with `answer`.
    #[must_use]
    pub fn answered(&self, answer: Answer) -> u64 {
        get(&self.answered[answer as usize])
    }

    /// Streams that the exit serves now.
    #[must_use]
    pub fn streams_in(&self) -> u64 {
        get(&self.streams_in)
    }

    /// Streams opened to other nodes that go on now.
    #[must_use]
    pub fn streams_out(&self) -> u64 {
        get(&self.streams_out)
    }

    /// Bytes of TCP connections that came from peers so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        get(&self.bytes_in)
    }

    /// Bytes of TCP connections that went to peers so far.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        get(&self.bytes_out)
    }

    /// Streams whose bytes go by a TCP connection of their own now.
    #[must_use]
    pub fn lanes(&self) -> u64 {
        get(&self.lanes)
    }

    /// TCP connections that streams have had so far.
    #[must_use]
    pub fn lanes_made(&self) -> u64 {
        get(&self.lanes_made)
    }

    /// Bytes that went or came by such connections so far.
    #[must_use]
    pub fn lane_bytes(&self) -> u64 {
        get(&self.lane_bytes)
    }

    /// Datagrams of flows that came from peers so far.
    #[must_use]
    pub fn datagrams_in(&self) -> u64 {
        get(&self.datagrams_in)
    }

    /// Datagrams of flows that went to peers so far.
    #[must_use]
    pub fn datagrams_out(&self) -> u64 {
        get(&self.datagrams_out)
    }

    /// Datagrams dropped for `reason` so far.
    #[must_use]
    pub fn datagrams_dropped(&self, reason: DatagramDropped) -> u64 {
        get(&self.datagrams_dropped[reason as usize])
    }

    pub(crate) fn open_failed_for(&self, fault: OpenFault) {
        add(&self.open_failed[fault as usize], 1);
    }

    pub(crate) fn answer_given(&self, answer: Answer) {
        add(&self.answered[answer as usize], 1);
    }

    pub(crate) fn datagram_dropped(&self, reason: DatagramDropped) {
        self.datagrams_were_dropped(reason, 1);
    }

    pub(crate) fn datagrams_were_dropped(&self, reason: DatagramDropped, count: u64) {
        add(&self.datagrams_dropped[reason as usize], count);
    }

    pub(crate) fn came(&self, bytes: usize) {
        add(&self.bytes_in, bytes as u64);
    }

    pub(crate) fn went(&self, bytes: usize) {
        add(&self.bytes_out, bytes as u64);
    }

    pub(crate) fn lane_moved(&self, bytes: usize) {
        add(&self.lane_bytes, bytes as u64);
    }

    /// Counts a lane, as long as the value lives.
    pub(crate) fn lane(self: &Arc<Self>) -> Going {
        add(&self.lanes_made, 1);
        Going::new(self, |counters| &counters.lanes)
    }

    pub(crate) fn datagram_came(&self) {
        add(&self.datagrams_in, 1);
    }

    pub(crate) fn datagram_went(&self) {
        add(&self.datagrams_out, 1);
    }

    /// Counts a stream that the exit serves, as long as the value lives.
    pub(crate) fn serving(self: &Arc<Self>) -> Going {
        Going::new(self, |counters| &counters.streams_in)
    }

    /// Counts a TCP stream of either direction, as long as the value lives.
    pub(crate) fn tcp(self: &Arc<Self>) -> Going {
        if self.ending.load(Ordering::Relaxed) {
            Going::new(self, |counters| &counters.tcp[1])
        } else {
            Going::new(self, |counters| &counters.tcp[0])
        }
    }

    /// From now on TCP streams are told from those that go on already.
    pub(crate) fn begin_ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// TCP streams that go on since before the ending began.
    pub(crate) fn earlier_tcp(&self) -> u64 {
        get(&self.tcp[0])
    }

    /// TCP streams that go on.
    pub(crate) fn all_tcp(&self) -> u64 {
        self.tcp.iter().map(get).sum()
    }

    /// Counts a stream that was opened here, as long as the value lives.
    pub(crate) fn using(self: &Arc<Self>) -> Going {
        Going::new(self, |counters| &counters.streams_out)
    }
}

/// Something that goes on, counted.
#[derive(Debug)]
pub(crate) struct Going {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU64,
}

impl Going {
    fn new(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU64) -> Self {
        add(which(counters), 1);
        Self {
            counters: Arc::clone(counters),
            which,
        }
    }
}

impl Going {
    /// All counters, for what it moves.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

//! A lane: the TCP connection, and the words about it that go by the connection between the
//! nodes. What it is good for is told in the [module](super).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use edgemesh_sockets::watch_here;
use edgemesh_wire::{LaneWord, WireError};
use iroh::endpoint::SendStream;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::budget::LanePlace;
use super::guide::Progress;
use super::handshake::Secured;
use super::lane_table::LaneTable;
use super::record::{Opener, Sealer};
use crate::counters::Counters;
use crate::inflow::Inflow;
use crate::peer_stream::PeerStream;

/// Words that wait to be sent. Each side of a lane waits for an answer after a few.
const WORDS_WAITING: usize = 8;

/// A lane for one stream, which is not used yet.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) words: PeerStream,
    pub(super) secured: Secured,
    pub(super) place: LanePlace,
    /// Where it is to be used.
    pub(super) runtime: Handle,
    /// Those of the same connection between the nodes.
    pub(super) beside: Arc<LaneTable>,
    pub(super) counters: Arc<Counters>,
}

/// The connection, as both directions use it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) tcp: TcpStream,
    /// Nothing can be sent or received by it any more.
    pub(super) lost: CancellationToken,
    pub(super) place: LanePlace,
    pub(super) counters: Arc<Counters>,
    /// Bytes of both directions so far.
    moved: AtomicU64,
}

/// What the sender of a direction has.
#[derive(Debug)]
pub(crate) struct LaneOut {
    pub(super) wire: Arc<Wire>,
    pub(super) sealer: Sealer,
    pub(super) heard: watch::Receiver<Heard>,
    pub(super) say: mpsc::Sender<LaneWord>,
}

/// What the receiver of a direction has.
#[derive(Debug)]
pub(crate) struct LaneIn {
    pub(super) wire: Arc<Wire>,
    pub(super) opener: Opener,
    pub(super) told: watch::Receiver<Told>,
    pub(super) say: mpsc::Sender<LaneWord>,
}

/// What the receiver at the other end has said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    pub(super) taken: u64,
    pub(super) left: Option<u64>,
}

/// What the sender at the other end has said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) switch: Option<u64>,
    pub(super) back: Option<u64>,
    pub(super) gone: bool,
    pub(super) sent: u64,
}

/// Where the two directions of a stream take the lanes that they are given.
#[derive(Debug)]
pub(crate) struct Takers {
    pub(super) outgoing: mpsc::Sender<LaneOut>,
    pub(super) incoming: mpsc::Sender<LaneIn>,
}

/// How a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneEnd {
    /// Both directions went back in order.
    InOrder,
    /// It broke.
    Lost,
}

/// A lane whose stream goes on on another connection between the nodes is lost, too; with a
/// stream that is over it ends in whatever order.
struct LeftBehind<'p> {
    wire: Arc<Wire>,
    progress: &'p Progress,
    is_through: bool,
}

impl Drop for LeftBehind<'_> {
    fn drop(&mut self) {
        if !self.is_through && !self.progress.is_over() {
            self.wire.give_up(&"its stream has left it");
        }
    }
}

impl Wire {
    /// Nothing more goes by it.
    pub(super) fn give_up(&self, why: &dyn std::fmt::Display) {
        if !self.lost.is_cancelled() {
            debug!(%why, "a lane is lost; its stream goes on without it");
            self.counters.lane_lost();
            self.lost.cancel();
        }
    }

    /// So many bytes went or came by it.
    pub(super) fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters.lane_moved(bytes);
    }

    /// Grows with every byte of either direction.
    pub(super) fn activity(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Lane {
    /// Where it is to be used.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has both directions use it, and passes their words on until both are back.
    pub(super) async fn run(mut self, takers: &Takers, progress: &Progress) -> LaneEnd {
        let (say, mut said) = mpsc::channel(WORDS_WAITING);
        let (told, told_here) = watch::channel(Told::default());
        let (heard, heard_here) = watch::channel(Heard::default());
        // Else it is watched from afar.
        let _ = watch_here(&mut self.secured.tcp);
        let _going = (self.counters.lane(), self.beside.count());
        let wire = Arc::new(Wire {
            tcp: self.secured.tcp,
            lost: CancellationToken::new(),
            place: self.place,
            counters: self.counters,
            moved: AtomicU64::new(0),
        });
        let lost = wire.lost.clone();
        let mut left = LeftBehind {
            wire: Arc::clone(&wire),
            progress,
            is_through: false,
        };
        let outgoing = LaneOut {
            wire: Arc::clone(&wire),
            sealer: self.secured.sealer,
            heard: heard_here,
            say: say.clone(),
        };
        let incoming = LaneIn {
            wire,
            opener: self.secured.opener,
            told: told_here,
            say,
        };
        // A direction that has ended already takes none, and says nothing by it.
        let _ = takers.outgoing.try_send(outgoing);
        let _ = takers.incoming.try_send(incoming);
        let mut words = self.words;
        let PeerStream { send, recv, .. } = &mut words;
        tokio::select! {
            biased;
            () = pass_on(&mut said, send) => {}
            error = listen(recv, &told, &heard) => {
                debug!(%error, "the words about a lane ended before it did");
                lost.cancel();
                // The other end has given up the stream, as this one learns from the stream
                // itself; or it goes on on another connection, as it is about to say there.
                while said.recv().await.is_some() {}
            }
        }
        left.is_through = true;
        words.close_in_order();
        if lost.is_cancelled() {
            LaneEnd::Lost
        } else {
            LaneEnd::InOrder
        }
    }
}

/// Says what the two directions have to say, until both are back.
async fn pass_on(said: &mut mpsc::Receiver<LaneWord>, send: &mut SendStream) {
    while let Some(word) = said.recv().await {
        if let Err(error) = send.write_all(&word.encode()).await {
            // The other end is through with the lane, or the connection is lost: who waits
            // for an answer then learns it from the stream.
            debug!(%error, "a word about a lane was not sent");
        }
    }
    let _ = send.finish();
}

/// Hears what the other end says, until it says no more.
async fn listen(
    recv: &mut Inflow,
    told: &watch::Sender<Told>,
    heard: &watch::Sender<Heard>,
) -> io::Error {
    loop {
        let word = match next_word(recv).await {
            Ok(Some(word)) => word,
            // It is through with the lane; what it has said so far is enough for this end.
            Ok(None) => std::future::pending().await,
            Err(error) => return error,
        };
        match word {
            LaneWord::Switch(at) => told.send_modify(|told| told.switch = Some(at)),
            LaneWord::Back(at) => told.send_modify(|told| told.back = Some(at)),
            LaneWord::Gone => told.send_modify(|told| told.gone = true),
            LaneWord::Sent(to) => told.send_modify(|told| told.sent = to),
            LaneWord::Taken(to) => heard.send_modify(|heard| heard.taken = to),
            LaneWord::Left(at) => heard.send_modify(|heard| heard.left = Some(at)),
        }
    }
}

async fn next_word(recv: &mut Inflow) -> io::Result<Option<LaneWord>> {
    let mut bytes = [0; LaneWord::LENGTH];
    let mut filled = 0;
    while filled < bytes.len() {
        match recv.read(&mut bytes[filled..]).await? {
            Some(count) => filled += count,
            None if filled == 0 => return Ok(None),
            None => return Err(offence(&WireError::Length("lane word"))),
        }
    }
    let word = LaneWord::decode(bytes).map_err(|error| offence(&error))?;
    Ok(Some(word))
}

/// The other end said what it must not.
pub(super) fn offence(how: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, how.to_string())
}

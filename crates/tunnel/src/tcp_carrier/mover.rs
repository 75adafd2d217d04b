//! Gets a lane for a stream: the end that opened the stream asks, the other end agrees.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::PublicKey;
use edgemesh_wire::{Answer, Dialler, LaneToken, Move};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Carrier;
use super::budget::LanePlace;
use super::handshake::Secured;
use super::lane::Lane;
use super::trials::Trials;
use crate::peer_address::public_key;
use crate::peer_stream::PeerStream;
use crate::session::Session;

/// How long an attempt may take, by either side's dialling. Nobody waits for it.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Asks for lanes for one stream.
#[derive(Debug)]
pub(crate) struct Mover {
    carrier: Arc<Carrier>,
    session: Arc<Session>,
    stream: u64,
}

/// An attempt to dial, of which is noted how it ended, also when it is dropped before.
struct Attempt<'m> {
    carrier: &'m Carrier,
    key: PublicKey,
    dialler: Dialler,
    began: Instant,
    is_over: bool,
}

/// Why there is no lane.
#[derive(Debug, thiserror::Error)]
enum NoLane {
    #[error("the connection between the nodes")]
    Stream(#[from] io::Error),
    #[error("the peer says {}", .0.as_str())]
    Refused(Answer),
    #[error("no TCP connection was made")]
    NotMade,
    #[error("it took too long")]
    TooLong,
}

impl NoLane {
    /// Whether it says something about who can dial whom.
    fn is_about_dialling(&self) -> bool {
        match self {
            Self::Stream(_) => false,
            Self::Refused(answer) => matches!(answer, Answer::Unreachable | Answer::Filtered),
            Self::NotMade | Self::TooLong => true,
        }
    }
}

impl Mover {
    /// For the stream `number` of `session`.
    pub(crate) fn new(carrier: Arc<Carrier>, session: Arc<Session>, number: u64) -> Self {
        Self {
            carrier,
            session,
            stream: number,
        }
    }

    /// A lane; none when there is none to be had now.
    pub(super) async fn lane(&self) -> Option<Lane> {
        let key = public_key(&self.session.connection.remote_id());
        let place = self.carrier.budget.take(key)?;
        loop {
            let dialler = self.carrier.trials(&key, |t| t.next(Instant::now()))?;
            let attempt = Attempt::begin(&self.carrier, key, dialler);
            let ended = timeout(ATTEMPT, self.attempt(dialler)).await;
            match ended.unwrap_or(Err(NoLane::TooLong)) {
                Ok((words, secured)) => {
                    attempt.over(Some(true));
                    return Some(self.made(words, secured, place));
                }
                Err(error) => {
                    debug!(%error, ?dialler, "no lane for a stream; it goes on without");
                    self.carrier.counters.lane_failed();
                    if !error.is_about_dialling() {
                        attempt.over(None);
                        return None;
                    }
                    attempt.over(Some(false));
                }
            }
        }
    }

    /// A lane of this stream was lost.
    pub(super) fn note_lost(&self) {
        let key = public_key(&self.session.connection.remote_id());
        self.carrier.trials(&key, |t| t.note_lost(Instant::now()));
    }

    fn made(&self, words: PeerStream, secured: Secured, place: LanePlace) -> Lane {
        Lane {
            words,
            secured,
            place,
            runtime: self.carrier.options.runtime.clone(),
            beside: Arc::clone(&self.session.lanes),
            counters: Arc::clone(&self.carrier.counters),
        }
    }

    async fn attempt(&self, dialler: Dialler) -> Result<(PeerStream, Secured), NoLane> {
        let connection = &self.session.connection;
        let mut bytes = [0; LaneToken::LENGTH];
        let chance = SystemRandom::new().fill(&mut bytes);
        chance.map_err(|_| io::Error::other("ask the system for random numbers"))?;
        let token = LaneToken(bytes);
        let key = public_key(&connection.remote_id());
        let opened = connection.open_bi().await.map_err(io::Error::from)?;
        let mut words = PeerStream::new(opened);
        let mut expected = match dialler {
            Dialler::Opener => None,
            Dialler::Exit => Some(self.carrier.lobby.expect(token, key)),
        };
        let asked = Move {
            stream: self.stream,
            token,
            dialler,
        };
        ask(&mut words, &asked).await?;
        let secured = match &mut expected {
            None => self.carrier.dial(connection, token).await,
            Some(expected) => expected.arrived().await,
        };
        Ok((words, secured.ok_or(NoLane::NotMade)?))
    }
}

impl<'m> Attempt<'m> {
    fn begin(carrier: &'m Carrier, key: PublicKey, dialler: Dialler) -> Self {
        Self {
            carrier,
            key,
            dialler,
            began: Instant::now(),
            is_over: false,
        }
    }

    /// It came to its end, and tells of the way whether it works, or nothing.
    fn over(mut self, works: Option<bool>) {
        self.is_over = true;
        if let Some(works) = works {
            let now = Instant::now();
            let note = |trials: &mut Trials| trials.note(self.dialler, works, now);
            self.carrier.trials(&self.key, note);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let (taken, now) = (self.began.elapsed(), Instant::now());
            let note = |trials: &mut Trials| trials.note_unfinished(self.dialler, taken, now);
            self.carrier.trials(&self.key, note);
        }
    }
}

async fn ask(words: &mut PeerStream, asked: &Move) -> Result<(), NoLane> {
    super::hurry(&words.send);
    let written = words.send.write_all(&asked.encode()).await;
    written.map_err(io::Error::from)?;
    let mut answer = [0; 1];
    let read = words.recv.read_exact(&mut answer).await;
    read.map_err(io::Error::other)?;
    match Answer::decode(answer[0]) {
        Ok(Answer::Connected) => Ok(()),
        Ok(answer) => Err(NoLane::Refused(answer)),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

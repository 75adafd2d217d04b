//! How one agent hands a node over to the next, as two processes tell each other.
//!
//! They talk over a connection to the node lock, a line at a time:
//!
//! | the successor says | the holder answers | from then on |
//! | --- | --- | --- |
//! | `take over`, and who it is | `wait`, when it knows that | the holder's `/readyz` says that somebody waits, so that no probe takes the one for the other |
//! | `ready`: it has its listeners, and the whole catalog | `go on` | the holder changes no rules any more, but serves and keeps the gates open |
//! | `done`: its rules are in | `yours` | the holder has let go of the lock and of all else that one agent alone can have |
//!
//! Should the successor end before it said `done`, the holder goes on as if nothing had
//! happened. The words are the same in all versions: an upgrade is what they are for.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::health::Waiting;
use crate::peer_user::stranger;

/// Longest line, in bytes.
const LONGEST_LINE: u64 = 512;

/// How long the other side may take for a word that it only has to say.
const A_WORD: Duration = Duration::from_secs(2);

/// How long the holder may take to end the step that it is at, and to let go.
const HOLDERS_STEP: Duration = Duration::from_secs(60);

/// How long the successor may take to bring its rules in.
const SUCCESSORS_RULES: Duration = Duration::from_secs(60);

/// How long who connects to the lock may take to say what for; without a word it is told
/// who holds it.
const A_REQUEST: Duration = Duration::from_millis(500);

const TAKE_OVER: &str = "take over";
const WAIT: &str = "wait";
const READY: &str = "ready";
const GO_ON: &str = "go on";
const DONE: &str = "done";
const YOURS: &str = "yours";

/// Why a hand-over came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    /// The other side is gone, or was silent for too long.
    #[error("{who} did not say \"{word}\" in time; is it hung, or has it ended?")]
    Silent {
        /// The other side.
        who: &'static str,
        /// What it should have said.
        word: &'static str,
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// It said something else.
    #[error("{who} said \"{said}\" instead of \"{word}\"")]
    Refused {
        /// The other side.
        who: &'static str,
        /// What it should have said.
        word: &'static str,
        /// What it said.
        said: String,
    },
    /// Somebody else has taken the lock's name.
    #[error(
        "a process of uid {0} holds the node lock and is not believed: stop it; only root may \
         be the agent"
    )]
    Stranger(u32),
}

impl HandOverError {
    /// Whether the other side has ended.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Silent { source, .. } => source.kind() != io::ErrorKind::TimedOut,
            Self::Refused { .. } | Self::Stranger(_) => false,
        }
    }
}

/// One end of the conversation.
#[derive(Debug)]
struct Talk {
    stream: BufReader<UnixStream>,
    /// Who is at the other end.
    with: &'static str,
}

impl Talk {
    async fn say(&mut self, word: &'static str) -> Result<(), HandOverError> {
        let line = format!("{word}\n");
        let said = timeout(A_WORD, self.stream.write_all(line.as_bytes())).await;
        said.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| self.silent(word, source))
    }

    /// The next line; empty when the other end is closed.
    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let stream = &mut self.stream;
        stream.take(LONGEST_LINE).read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    }

    async fn hear(&mut self, word: &'static str, within: Duration) -> Result<(), HandOverError> {
        match timeout(within, self.line()).await {
            Ok(Ok(said)) if said == word => Ok(()),
            Ok(Ok(said)) if !said.is_empty() => Err(HandOverError::Refused {
                who: self.with,
                word,
                said,
            }),
            Ok(Ok(_)) => Err(self.silent(word, io::ErrorKind::UnexpectedEof.into())),
            Ok(Err(source)) => Err(self.silent(word, source)),
            Err(_) => Err(self.silent(word, io::ErrorKind::TimedOut.into())),
        }
    }

    fn silent(&self, word: &'static str, source: io::Error) -> HandOverError {
        HandOverError::Silent {
            who: self.with,
            word,
            source,
        }
    }
}

/// Someone at the holder's door.
pub(crate) enum Request {
    /// Only wants to know who holds the lock.
    Who(UnixStream),
    /// Wants to take over.
    TakeOver(Successor),
}

impl Request {
    /// Finds out what somebody wants who has connected to the lock.
    pub(crate) async fn hear(stream: UnixStream) -> Self {
        let mut talk = Talk {
            stream: BufReader::new(stream),
            with: "the agent that wants to take over",
        };
        let line = match timeout(A_REQUEST, talk.line()).await {
            Ok(Ok(line)) => line,
            Ok(Err(_)) | Err(_) => String::new(),
        };
        let believed = matches!(stranger(talk.stream.get_ref()), Ok(None));
        match line.strip_prefix(TAKE_OVER) {
            Some(who) if believed => Self::TakeOver(Successor {
                talk,
                who: who
                    .trim_start()
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect(),
                _waiting: None,
            }),
            Some(_) | None => Self::Who(talk.stream.into_inner()),
        }
    }
}

/// The agent that wants this node, as the holder sees it. Dropping it lets that one know
/// that it will not get it from here.
#[derive(Debug)]
pub(crate) struct Successor {
    talk: Talk,
    who: String,
    _waiting: Option<Waiting>,
}

impl Successor {
    /// Who it is, by its own word.
    pub(crate) fn who(&self) -> &str {
        &self.who
    }

    /// Lets it wait until it is ready, for as long as it takes, while `waiting` is so.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(crate) async fn until_ready(mut self, waiting: Waiting) -> Result<Self, HandOverError> {
        self._waiting = Some(waiting);
        self.talk.say(WAIT).await?;
        self.talk.hear(READY, Duration::MAX).await?;
        Ok(self)
    }

    /// Lets it bring its rules in: nobody else changes any.
    ///
    /// # Errors
    ///
    /// When it did not get that done within 60 s, or has ended: the node is still ours.
    pub(crate) async fn go_on(&mut self) -> Result<(), HandOverError> {
        self.talk.say(GO_ON).await?;
        self.talk.hear(DONE, SUCCESSORS_RULES).await
    }

    /// Tells it that all is let go. One that has ended meanwhile has nobody to be told.
    pub(crate) async fn yours(mut self) {
        if let Err(error) = self.talk.say(YOURS).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the agent that has taken over is not there any more"
            );
        }
    }
}

/// The agent that holds this node, as its successor sees it. Dropping it lets that one go
/// on, unless it has let go already.
#[derive(Debug)]
pub(crate) struct Predecessor {
    talk: Talk,
}

impl Predecessor {
    /// Tells the holder of the lock at `address` who will take over from it.
    ///
    /// # Errors
    ///
    /// When there is none any more, it is not believed, or it doesn't hand over.
    pub(crate) async fn of(address: &SocketAddr, who: &str) -> Result<Self, HandOverError> {
        let with = "the agent that holds this node";
        let silent = |source| HandOverError::Silent {
            who: with,
            word: WAIT,
            source,
        };
        let stream = StdStream::connect_addr(address).map_err(silent)?;
        if let Some(uid) = stranger(&stream).map_err(silent)? {
            return Err(HandOverError::Stranger(uid));
        }
        stream.set_nonblocking(true).map_err(silent)?;
        let stream = UnixStream::from_std(stream).map_err(silent)?;
        let mut talk = Talk {
            stream: BufReader::new(stream),
            with,
        };
        let request = format!("{TAKE_OVER} {who}\n");
        talk.stream
            .write_all(request.as_bytes())
            .await
            .map_err(silent)?;
        talk.hear(WAIT, A_WORD).await?;
        Ok(Self { talk })
    }

    /// Waits until the holder has ended. Safe to cancel.
    pub(crate) async fn gone(&mut self) {
        // It has nothing to say unless it is asked.
        let _ = self.talk.stream.fill_buf().await;
    }

    /// Asks the holder to leave the rules alone from now on.
    ///
    /// # Errors
    ///
    /// When it does not within 60 s, or has ended.
    pub(crate) async fn ready(&mut self) -> Result<(), HandOverError> {
        self.talk.say(READY).await?;
        self.talk.hear(GO_ON, HOLDERS_STEP).await
    }

    /// Tells the holder that this agent's rules are in, and waits until it has let go of
    /// everything else.
    ///
    /// # Errors
    ///
    /// When it does not within 60 s, or has ended.
    pub(crate) async fn done(mut self) -> Result<(), HandOverError> {
        self.talk.say(DONE).await?;
        self.talk.hear(YOURS, HOLDERS_STEP).await
    }
}

/// The lock's address in the abstract namespace.
pub(crate) fn address(name: &[u8]) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    fn ends() -> (UnixStream, Predecessor) {
        let (holders, successors) = UnixStream::pair().unwrap();
        let talk = Talk {
            stream: BufReader::new(successors),
            with: "the holder",
        };
        (holders, Predecessor { talk })
    }

    async fn successor(holders: UnixStream, predecessor: &mut Predecessor) -> Successor {
        let request = b"take over edgemesh-agent 2\n";
        predecessor.talk.stream.write_all(request).await.unwrap();
        match Request::hear(holders).await {
            Request::TakeOver(successor) => successor,
            Request::Who(_) => panic!("it was not understood"),
        }
    }

    #[tokio::test]
    async fn a_node_is_handed_over_in_three_steps() {
        let health = Health::new();
        let (holders, mut predecessor) = ends();
        let arrived = successor(holders, &mut predecessor).await;
        assert_eq!(arrived.who(), "edgemesh-agent 2");
        let waiting = health.somebody_waits(arrived.who());
        let (ready, asked) = tokio::join!(
            async {
                let mut successor = arrived.until_ready(waiting).await.unwrap();
                assert!(health.ready().1.contains("edgemesh-agent 2"));
                successor.go_on().await.unwrap();
                successor.yours().await;
            },
            async {
                predecessor.talk.hear(WAIT, A_WORD).await?;
                predecessor.ready().await?;
                predecessor.done().await
            }
        );
        let ((), ()) = (ready, asked.unwrap());
        assert!(!health.ready().1.contains("edgemesh-agent 2"));
    }

    #[tokio::test]
    async fn a_successor_that_ends_before_it_is_done_is_told_from_one_that_is() {
        let (holders, mut predecessor) = ends();
        let mut arrived = successor(holders, &mut predecessor).await;
        let (outcome, ()) = tokio::join!(arrived.go_on(), async {
            predecessor.talk.hear(GO_ON, A_WORD).await.unwrap();
            drop(predecessor);
        });
        assert!(matches!(outcome, Err(HandOverError::Silent { .. })));
    }

    #[tokio::test]
    async fn the_holders_end_is_noticed() {
        let (holders, mut predecessor) = ends();
        drop(holders);
        predecessor.gone().await;
        assert!(predecessor.ready().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_without_a_word_only_wants_to_know_who_holds_the_lock() {
        let (holders, _silent) = UnixStream::pair().unwrap();
        assert!(matches!(Request::hear(holders).await, Request::Who(_)));
    }
}

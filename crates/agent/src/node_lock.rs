//! One agent per node.
//!
//! The lock is a listening socket in the abstract namespace of Unix addresses.
//! It belongs to the network namespace, as the rules do, vanishes with its
//! holder however that dies, and answers who it is to a second agent that
//! finds it taken; or hands over to one that was started for that (`hand_over.rs`).

use std::io;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{Read, Write};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::hand_over::{self, HandOverError, Predecessor, Request, Successor};
use crate::health::Health;

/// Name of the lock in the abstract namespace.
const NAME: &[u8] = b"edgemesh-agent";

/// How long a second agent waits for the holder's word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a lock whose holder says nothing is waited for. An agent that was killed while it
/// started a program leaves the lock with that program's process for an instant.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Between two attempts.
const ATTEMPTS_EVERY: Duration = Duration::from_millis(20);

/// Longest self-description that is read from a holder.
const ANSWER_LIMIT: u64 = 512;

/// Processes at a time that are told who holds the lock, or wait to take over; a further
/// one waits in the backlog.
const MOST_VISITORS: usize = 8;

/// Proof that this process is the only agent in its network namespace.
/// [Releasing](Self::release) or dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct NodeLock {
    // Held for its effect: the name is free again when the task, and with it the
    // listener, is gone.
    answering: JoinSet<()>,
    successors: mpsc::Receiver<Successor>,
}

/// Where an agent stands at its start.
#[derive(Debug)]
pub(crate) enum Place {
    /// It is the only one.
    First(NodeLock),
    /// Another one holds the node and will hand it over.
    Behind(Predecessor),
}

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeLockError {
    /// Another process has it.
    #[error(
        "another edgemesh-agent already programs this node's rules: {holder}. Stop it first \
         (its rules stay in force until then), or start this one with --take-over; two agents \
         would undo each other's work"
    )]
    Held {
        /// What is known about the holder.
        holder: String,
    },
    /// Another process has it and does not hand over.
    #[error("cannot take over from the agent that holds this node")]
    HandOver(#[source] HandOverError),
    /// The socket could not be made at all.
    #[error("cannot open the node lock (abstract Unix socket \"edgemesh-agent\")")]
    Socket(#[source] io::Error),
}

impl NodeLock {
    /// Takes the lock, or says who holds it. `who` is what a second agent is told
    /// about this one: one line, no secrets. `health` gets to know when one waits to take
    /// over.
    ///
    /// # Errors
    ///
    /// [`NodeLockError::Held`] when another process has the lock.
    pub(crate) async fn take(who: String, health: Health) -> Result<Self, NodeLockError> {
        let address = address()?;
        let deadline = Instant::now() + LETTING_GO;
        let listener = loop {
            match StdListener::bind_addr(&address) {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    let holder = Holder::ask(&address);
                    if holder.spoke || Instant::now() >= deadline {
                        return Err(NodeLockError::Held {
                            holder: holder.description,
                        });
                    }
                    sleep(ATTEMPTS_EVERY).await;
                }
                Err(error) => return Err(NodeLockError::Socket(error)),
            }
        };
        listener
            .set_nonblocking(true)
            .map_err(NodeLockError::Socket)?;
        let listener = UnixListener::from_std(listener).map_err(NodeLockError::Socket)?;
        let (arrived, successors) = mpsc::channel(1);
        let mut answering = JoinSet::new();
        let host = Host {
            who,
            health,
            arrived,
        };
        answering.spawn(host.receive(listener));
        Ok(Self {
            answering,
            successors,
        })
    }

    /// Takes the lock, or gets in line behind who holds it.
    ///
    /// # Errors
    ///
    /// [`NodeLockError::HandOver`] when another process has the lock and does not hand over.
    pub(crate) async fn take_or_wait(who: &str, health: &Health) -> Result<Place, NodeLockError> {
        let held = match Self::take(who.to_owned(), health.clone()).await {
            Ok(lock) => return Ok(Place::First(lock)),
            Err(NodeLockError::Held { holder }) => holder,
            Err(error) => return Err(error),
        };
        let predecessor = Predecessor::of(&address()?, who)
            .await
            .map_err(NodeLockError::HandOver)?;
        tracing::info!(holder = %held, "waiting to take over from the agent that holds this node");
        Ok(Place::Behind(predecessor))
    }

    /// Whether nobody has the lock.
    pub(crate) fn is_free() -> bool {
        let connected = address()
            .map_err(io::Error::other)
            .and_then(|address| StdStream::connect_addr(&address));
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Waits until another agent is ready to take over. Safe to cancel.
    pub(crate) async fn successor(&mut self) -> Successor {
        match self.successors.recv().await {
            Some(successor) => successor,
            // Whoever answers at the door has panicked: nobody will come in.
            None => std::future::pending().await,
        }
    }

    /// Lets the next agent in: the name is free when this returns.
    pub(crate) async fn release(mut self) {
        self.answering.shutdown().await;
    }
}

fn address() -> Result<SocketAddr, NodeLockError> {
    hand_over::address(NAME).map_err(NodeLockError::Socket)
}

/// The holder, to those who connect to the lock.
#[derive(Clone)]
struct Host {
    who: String,
    health: Health,
    arrived: mpsc::Sender<Successor>,
}

impl Host {
    async fn receive(self, listener: UnixListener) {
        let mut visitors = JoinSet::new();
        loop {
            while visitors.len() >= MOST_VISITORS {
                visitors.join_next().await;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let host = self.clone();
                        visitors.spawn(async move {
                            host.answer(Request::hear(stream).await).await;
                        });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "accept on the node lock failed");
                        sleep(ANSWER_TIMEOUT).await;
                    }
                },
                Some(_) = visitors.join_next() => {}
            }
        }
    }

    async fn answer(self, request: Request) {
        let successor = match request {
            // One line into an empty socket buffer never blocks, and a caller who is
            // gone again has nothing to be told.
            Request::Who(stream) => return drop(stream.try_write(self.who.as_bytes())),
            Request::TakeOver(successor) => successor,
        };
        tracing::info!(
            successor = successor.who(),
            "another agent waits to take over"
        );
        let waiting = self.health.somebody_waits(successor.who());
        match successor.until_ready(waiting).await {
            // The receiver goes with this task.
            Ok(ready) => drop(self.arrived.send(ready).await),
            Err(error) => tracing::info!(
                error = &error as &dyn std::error::Error,
                "the agent that waited to take over is gone"
            ),
        }
    }
}

/// Who has the lock.
struct Holder {
    description: String,
    /// Whether it said anything itself.
    spoke: bool,
}

impl Holder {
    /// Asks the holder who it is. The kernel vouches for the process id; the rest is its own
    /// word, so it is shown as such and cut to one printable line.
    fn ask(address: &SocketAddr) -> Self {
        let silent = |description| Self {
            description,
            spoke: false,
        };
        let Ok(mut stream) = StdStream::connect_addr(address) else {
            return silent("a process that does not answer on the node lock".to_owned());
        };
        let credentials = getsockopt(&stream, PeerCredentials).ok();
        let mut word = String::new();
        // A holder that closes without hearing us out has said what it has to say.
        let _ = stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .and_then(|()| stream.write_all(b"who\n"))
            .and_then(|()| (&stream).take(ANSWER_LIMIT).read_to_string(&mut word));
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        let process = credentials.map_or_else(
            || "process unknown".to_owned(),
            |c| match c.pid() {
                // The kernel shows 0 for a process outside our own pid namespace.
                0 => format!("a process of uid {} outside this container", c.uid()),
                pid => format!("process {pid} (uid {})", c.uid()),
            },
        );
        if word.is_empty() {
            silent(format!("{process}, which does not say who it is"))
        } else {
            Self {
                description: format!("{process}, which says \"{word}\""),
                spoke: true,
            }
        }
    }
}

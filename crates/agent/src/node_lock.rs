//! One agent per node.
//!
//! The lock is a listening socket in the abstract namespace of Unix addresses.
//! It belongs to the network namespace, as the rules do, vanishes with its
//! holder however that dies, and answers who it is to a second agent that
//! finds it taken.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{Read, Write};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

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

/// Proof that this process is the only agent in its network namespace. Dropping it
/// lets the next one in.
#[derive(Debug)]
pub(crate) struct NodeLock {
    // Held for its effect: the name is free again when the task, and with it the
    // listener, is gone.
    _answering: JoinSet<()>,
}

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeLockError {
    /// Another process has it.
    #[error(
        "another edgemesh-agent already programs this node's rules: {holder}. Stop it first \
         (its rules stay in force until then); two agents would undo each other's work"
    )]
    Held {
        /// What is known about the holder.
        holder: String,
    },
    /// The socket could not be made at all.
    #[error("cannot open the node lock (abstract Unix socket \"edgemesh-agent\")")]
    Socket(#[source] io::Error),
}

impl NodeLock {
    /// Takes the lock, or says who holds it. `who` is what a second agent is told
    /// about this one: one line, no secrets.
    ///
    /// # Errors
    ///
    /// [`NodeLockError::Held`] when another process has the lock.
    pub(crate) async fn take(who: String) -> Result<Self, NodeLockError> {
        let address = SocketAddr::from_abstract_name(NAME).map_err(NodeLockError::Socket)?;
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
        let mut answering = JoinSet::new();
        answering.spawn(answer(listener, who));
        Ok(Self {
            _answering: answering,
        })
    }
}

async fn answer(listener: UnixListener, who: String) {
    loop {
        match listener.accept().await {
            // One line into an empty socket buffer never blocks, and a caller who is
            // gone again has nothing to be told.
            Ok((stream, _)) => drop(stream.try_write(who.as_bytes())),
            Err(error) => {
                tracing::debug!(%error, "accept on the node lock failed");
                sleep(ANSWER_TIMEOUT).await;
            }
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
        let asked = stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .and_then(|()| stream.flush())
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
        if asked.is_err() || word.is_empty() {
            silent(format!("{process}, which does not say who it is"))
        } else {
            Self {
                description: format!("{process}, which says \"{word}\""),
                spoke: true,
            }
        }
    }
}

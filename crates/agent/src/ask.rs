//! Asks the agent that runs on this node.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use crate::answers::{NAME, Question, Reply};
use crate::explain::{AgentAnswer, Query};
use crate::peer_user::stranger;
use crate::status::StatusReport;

/// How long each step of an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// There is nobody to ask.
    #[error(
        "no agent answers in this network namespace. Is it running (`kubectl -n kubeedge get \
         pods -o wide`, `systemctl status edgemesh-agent`)? Ask from the host's own network \
         namespace, or with `kubectl exec` in the agent's pod"
    )]
    NotRunning,
    /// Somebody else listens there.
    #[error(
        "a process of uid {uid} has taken the agent's socket \"@edgemesh-agent.answers\"; it is \
         not believed. Stop it: only root may be the agent"
    )]
    Stranger {
        /// Whose process it is.
        uid: u32,
    },
    /// The agent refuses.
    #[error("the agent refuses to answer: {0}")]
    Refused(String),
    /// The connection broke, or took too long.
    #[error("the agent is there but does not answer within {} s", PATIENCE.as_secs())]
    Broken(#[source] io::Error),
    /// The answer is of another kind than the question.
    #[error(
        "the agent's answer is not understood; ask with the program of the agent's own version \
         (this one is {})",
        env!("CARGO_PKG_VERSION")
    )]
    NotUnderstood(#[source] Option<serde_json::Error>),
}

/// How the agent fares.
///
/// # Errors
///
/// When none answers.
pub(crate) fn status() -> Result<StatusReport, NoAnswer> {
    match ask(&Question::Status)? {
        Reply::Status(status) => Ok(*status),
        Reply::Refused(why) => Err(NoAnswer::Refused(why)),
        Reply::Explain(_) => Err(NoAnswer::NotUnderstood(None)),
    }
}

/// What the agent planned for a Service.
///
/// # Errors
///
/// When none answers.
pub(crate) fn explain(query: &Query) -> Result<AgentAnswer, NoAnswer> {
    let question = Question::Explain {
        query: query.clone(),
    };
    match ask(&question)? {
        Reply::Explain(answer) => Ok(answer),
        Reply::Refused(why) => Err(NoAnswer::Refused(why)),
        Reply::Status(_) => Err(NoAnswer::NotUnderstood(None)),
    }
}

fn ask(question: &Question) -> Result<Reply, NoAnswer> {
    let address = SocketAddr::from_abstract_name(NAME).map_err(NoAnswer::Broken)?;
    let mut stream = UnixStream::connect_addr(&address).map_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            NoAnswer::NotRunning
        } else {
            NoAnswer::Broken(error)
        }
    })?;
    believe(&stream)?;
    let question =
        serde_json::to_string(question).map_err(|error| NoAnswer::NotUnderstood(Some(error)))?;
    let answer = converse(&mut stream, &question).map_err(NoAnswer::Broken)?;
    serde_json::from_slice(&answer).map_err(|error| NoAnswer::NotUnderstood(Some(error)))
}

/// Anybody can take a free abstract name; only root, or we ourselves, can be the agent.
fn believe(stream: &UnixStream) -> Result<(), NoAnswer> {
    match stranger(stream).map_err(NoAnswer::Broken)? {
        None => Ok(()),
        Some(uid) => Err(NoAnswer::Stranger { uid }),
    }
}

fn converse(stream: &mut UnixStream, question: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Somebody who is refused may find the other end closed; the reason is there to read.
    let _ = stream
        .write_all(question.as_bytes())
        .and_then(|()| stream.write_all(b"\n"))
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

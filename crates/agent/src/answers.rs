//! The way by which a running agent is asked: a Unix socket, for root of this node alone.
//!
//! The socket's name is in the abstract namespace, as the node lock's is: it needs no
//! folder that the asker would have to know or share, it belongs to the network namespace
//! as the rules do, and it vanishes with the agent. Abstract names have no permissions, so
//! the kernel's word on who asks (`SO_PEERCRED`) decides.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::explain::{AgentAnswer, Query};
use crate::peer_user::stranger;
use crate::status::{Observer, StatusReport};

/// Name of the socket in the abstract namespace.
pub(crate) const NAME: &[u8] = b"edgemesh-agent.answers";

/// Longest question, in bytes.
const LONGEST_QUESTION: u64 = 4096;

/// How long a question of somebody who gets no answer is waited for.
const STRANGERS_PATIENCE: Duration = Duration::from_millis(200);

/// How long a question may take to come in, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Askers at a time; a further one waits in the backlog.
const MOST_ASKERS: usize = 8;

/// Pause before the name is tried again, or another asker is let in after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// A question, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Question {
    /// How the agent fares.
    Status,
    /// What it planned for a Service.
    Explain {
        /// Which.
        query: Query,
    },
}

/// An answer, as JSON up to the end of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To [`Question::Status`].
    Status(Box<StatusReport>),
    /// To [`Question::Explain`].
    Explain(AgentAnswer),
    /// There is no answer, for this reason.
    Refused(String),
}

/// Answers until it is dropped. While another agent has the name (it is ending, and still
/// lets connections finish) this one waits for it.
pub(crate) async fn serve(observer: Observer) {
    let listener = loop {
        match listen() {
            Ok(listener) => break listener,
            Err(error) => tracing::debug!(%error, "the socket for status and explain is taken"),
        }
        sleep(PAUSE).await;
    };
    let mut askers = JoinSet::new();
    loop {
        while askers.len() >= MOST_ASKERS {
            askers.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let observer = observer.clone();
                    askers.spawn(async move {
                        // An asker who is slow or gone again has nobody to complain to.
                        let _ = timeout(PATIENCE, converse(stream, &observer)).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept on the socket for status and explain failed");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = askers.join_next() => {}
        }
    }
}

fn listen() -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn converse(mut stream: UnixStream, observer: &Observer) -> io::Result<()> {
    let refusal = refusal(&stream);
    // Read in any case: a socket that is closed with something unread resets the connection,
    // and the other end would never see the answer.
    let mut line = String::new();
    let (reader, _) = stream.split();
    let mut reader = BufReader::new(reader.take(LONGEST_QUESTION));
    let reading = reader.read_line(&mut line);
    let reply = match refusal {
        Some(why) => {
            // Strangers keep nobody waiting.
            let _ = timeout(STRANGERS_PATIENCE, reading).await;
            Reply::Refused(why)
        }
        None => {
            reading.await?;
            answer(&line, observer)
        }
    };
    let text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    stream.write_all(&text).await?;
    stream.shutdown().await
}

/// Why who is at the other end gets no answer: names of Services are nobody's business but
/// root's, and of the user that the agent runs as.
fn refusal(stream: &UnixStream) -> Option<String> {
    match stranger(stream) {
        Ok(None) => None,
        Ok(Some(uid)) => Some(format!("only root may ask this agent; you are uid {uid}")),
        Err(error) => Some(format!("the kernel does not tell who asks: {error}")),
    }
}

fn answer(line: &str, observer: &Observer) -> Reply {
    match serde_json::from_str(line) {
        Ok(Question::Status) => Reply::Status(Box::new(observer.status())),
        Ok(Question::Explain { query }) => Reply::Explain(observer.explain(&query)),
        Err(error) => Reply::Refused(format!(
            "this agent (version {}) does not understand the question: {error}; ask with the \
             program of the same version",
            env!("CARGO_PKG_VERSION")
        )),
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::NodeName;

    use super::*;
    use crate::health::Health;

    fn observer() -> Observer {
        Observer::of_idle(NodeName::new("edge-1"), Health::new())
    }

    #[tokio::test]
    async fn a_question_that_is_not_understood_gets_a_reason() {
        for line in ["", "{}", "{\"ask\":\"future\"}", "\u{0}"] {
            let Reply::Refused(why) = answer(line, &observer()) else {
                panic!("{line:?} was answered");
            };
            assert!(why.contains("version"), "{why}");
        }
    }

    #[tokio::test]
    async fn each_question_gets_its_kind_of_answer() {
        let ask =
            |question: &Question| answer(&serde_json::to_string(question).unwrap(), &observer());
        assert!(matches!(ask(&Question::Status), Reply::Status(_)));
        let query = "default/web".parse().unwrap();
        let reply = ask(&Question::Explain { query });
        assert_eq!(reply, Reply::Explain(AgentAnswer::default()));
    }
}

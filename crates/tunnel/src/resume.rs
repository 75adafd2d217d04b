//! The opener's side of TCP streams that go on on another connection with the peer.
//!
//! When a peer was silent for a while, as it is while an uplink is away, its connection may
//! live, and still its streams stand for minutes or for good: the transport (noq 1.4) sends
//! what was under way on a path that was given up only when that path is discarded. That
//! takes three time-outs after both ends have said that they gave it up. The time-out is
//! spoilt by then, for an acknowledgement that comes after the silence is taken for a round
//! trip as long as that; and an end that said so on the dead path itself may not say it again.
//!
//! So a connection that was silent is replaced ([`crate::link`]), and the opener asks on the
//! new one for each stream: both ends say how far they have come, and send again what the
//! other one has not got ([`crate::course`]). The endpoint and its client notice a pause.

use std::io;
use std::time::Duration;

use edgemesh_sockets::broken;
use edgemesh_wire::{Answer, Resume, StreamName};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::carry::Broken;
use crate::course::Course;
use crate::link::Link;
use crate::peer_stream::PeerStream;
use crate::session::StreamOfSession;

/// How long an answer may take before it is asked again, on what connection there is then.
const ANSWER: Duration = Duration::from_secs(4);
/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long the peer may be away again while a stream is between two connections; as long as
/// a silent connection waits.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a stream goes on.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) stream: PeerStream,
    pub(crate) of: StreamOfSession,
}

/// Why a stream does not go on elsewhere.
#[derive(Debug)]
pub(crate) enum NotResumed {
    /// It has to go on where it is.
    Stays,
    /// The other end has carried all of it.
    Over,
    /// It is broken.
    Broken(Broken),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("there is no connection with the peer")]
    NoConnection,
    #[error("the connection was lost")]
    Lost(#[from] io::Error),
    #[error("the peer did not answer in time")]
    TooLong,
    #[error("the answer was none")]
    Offence,
}

/// Asks the peer for the stream `name`, which has come to `course`, until it answers. `client`
/// is where the stream comes from.
pub(crate) async fn resume(
    link: &Link,
    name: StreamName,
    course: &mut Course,
    client: &TcpStream,
) -> Result<Resumed, NotResumed> {
    let asked = Resume {
        name,
        kept_from: course.outbound.kept_from(),
        received: course.inbound.at(),
    };
    let until = Instant::now() + PATIENCE;
    let answered = tokio::select! {
        biased;
        answered = ask_until(link, &asked, until) => answered,
        error = broken(client) => return Err(NotResumed::Broken(Broken::Socket(error))),
    };
    let (resumed, answer) = match answered {
        Ok(answered) => answered,
        Err(error) => return Err(NotResumed::Broken(Broken::Tunnel(error))),
    };
    match answer {
        Said::GoesOnAt(position) if course.meets(position, asked.received) => {
            course.go_on_at(position, std::time::Instant::now());
            Ok(resumed)
        }
        Said::GoesOnAt(_) => {
            let session = resumed.of.session();
            session.offended(&"a stream was to go on where it has never been");
            Err(NotResumed::Broken(Broken::Tunnel(
                io::ErrorKind::InvalidData.into(),
            )))
        }
        Said::No(Answer::NotAnEndpoint) if course.is_complete() => Err(NotResumed::Over),
        Said::No(Answer::NotAnEndpoint) => Err(NotResumed::Broken(Broken::Tunnel(
            io::ErrorKind::ConnectionReset.into(),
        ))),
        Said::No(answer) => {
            debug!(
                answer = answer.as_str(),
                "a stream stays on a worn connection"
            );
            Err(NotResumed::Stays)
        }
    }
}

/// What the peer said.
enum Said {
    /// It has the opener's bytes up to there.
    GoesOnAt(u64),
    No(Answer),
}

/// Asks again and again: once it was asked, the peer may have left the earlier stream.
async fn ask_until(link: &Link, asked: &Resume, until: Instant) -> io::Result<(Resumed, Said)> {
    loop {
        match timeout(ANSWER, ask(link, asked)).await {
            Ok(Ok(answered)) => return Ok(answered),
            Ok(Err(NoAnswer::Offence)) => return Err(io::ErrorKind::InvalidData.into()),
            no_answer if Instant::now() >= until => {
                let error = no_answer.map_or(NoAnswer::TooLong, |no| {
                    no.err().unwrap_or(NoAnswer::TooLong)
                });
                return Err(io::Error::new(io::ErrorKind::TimedOut, error));
            }
            _ => sleep(RETRY_AFTER).await,
        }
    }
}

async fn ask(link: &Link, asked: &Resume) -> Result<(Resumed, Said), NoAnswer> {
    let session = link.session().await.map_err(|_| NoAnswer::NoConnection)?;
    let opened = session
        .connection
        .open_bi()
        .await
        .map_err(io::Error::from)?;
    let of = session.count_stream();
    let mut stream = PeerStream::new(opened);
    let written = stream.send.write_all(&asked.encode()).await;
    written.map_err(io::Error::from)?;
    let mut answer = [0; 1];
    let read = stream.recv.read_exact(&mut answer).await;
    read.map_err(io::Error::other)?;
    let answer = Answer::decode(answer[0]).map_err(|error| {
        session.offended(&error);
        NoAnswer::Offence
    })?;
    let said = if answer == Answer::Connected {
        let mut position = [0; Resume::POSITION];
        let read = stream.recv.read_exact(&mut position).await;
        read.map_err(io::Error::other)?;
        Said::GoesOnAt(u64::from_be_bytes(position))
    } else if answer == Answer::Failed {
        // Our question was not there in time.
        return Err(NoAnswer::TooLong);
    } else {
        Said::No(answer)
    };
    Ok((Resumed { stream, of }, said))
}

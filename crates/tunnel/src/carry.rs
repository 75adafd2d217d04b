//! Carries a TCP connection over a stream as if there were nobody between its ends.
//!
//! * An end of stream passes as an end of stream and leaves the other way open (RFC 9293
//!   section 3.6), at either end of the tunnel.
//! * A reset passes as a reset, at once: QUIC's RESET_STREAM and STOP_SENDING (RFC 9000
//!   section 3.5).
//! * What a slow reader does not take stops its writer: QUIC's flow control passes the
//!   back-pressure on.
//! * It is over when the peer has acknowledged all that was sent, not when it was queued.
//! * What it has come to is kept apart (see [`crate::course`]), so that it can go on by another
//!   stream.
//! * Bytes that are many may go by a lane for a while (see [`crate::tcp_carrier`]); their end
//!   and their reset never do.

use std::io;
use std::pin::pin;

use bytes::Bytes;
use edgemesh_sockets::{StreamBuffer, broken, end_stream, watch_here};
use edgemesh_wire::ReadUpTo;
use iroh::endpoint::{ReadError, SendStream, VarInt, WriteError};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep};

use crate::chunk_run::{pass_on_rest, take_run};
use crate::course::{Course, FORGOTTEN_AFTER, Inbound, Outbound};
use crate::inflow::{Inflow, is_offence};
use crate::movable::go_on_in;
use crate::peer_stream::PeerStream;
use crate::readings::read_by_peer;
use crate::session::Session;
use crate::tcp_carrier::{
    Brought, Guided, LaneIn, LaneOut, Lanes, Progress, receive_by_lane, send_by_lane, switch,
};

/// Bytes taken from a stream at once. They are not copied; this bounds how long one stream
/// keeps the others of its worker waiting.
const CHUNK: usize = 64 * 1024;
/// Pieces given to a stream at once, where more than one is waiting.
const TOGETHER: usize = 64;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the socket into the tunnel.
    IntoTunnel,
    /// From the tunnel to the socket.
    OutOfTunnel,
}

/// Which side broke a connection, and how.
#[derive(Debug)]
pub enum Broken {
    /// The socket on this node.
    Socket(io::Error),
    /// The stream: the other end's socket was reset, or the connection between the nodes is
    /// lost.
    Tunnel(io::Error),
}

/// Carries until both sides have ended their part, or one broke the connection.
///
/// Dropped before, it leaves in `course` all that is needed to go on by another stream; by this
/// one only if [`Course::can_stay`].
pub(crate) async fn carry(
    tcp: &mut TcpStream,
    stream: &mut PeerStream,
    course: &mut Course,
    lanes: Lanes,
    session: &Session,
    moved: impl Fn(Way, usize),
) -> Result<(), Broken> {
    let number = stream.number();
    stream.recv.may_be_read_ahead(&session.ahead);
    let _being_read = session.readings.register(number, course.inbound.reading());
    let mut guided = Guided::new(lanes);
    let first = tokio::select! {
        biased;
        done = pumps(tcp, stream, course, &mut guided.brought, session, &moved) => return done,
        first = guided.guide.first() => first,
    };
    // By lanes it will move much, which must not keep others from the threads of QUIC.
    go_on_in(first.runtime()).await;
    // Else it is watched from afar.
    let _ = watch_here(tcp);
    tokio::select! {
        biased;
        done = pumps(tcp, stream, course, &mut guided.brought, session, &moved) => done,
        never = guided.guide.run(first) => match never {},
    }
}

/// Moves bytes both ways until both have ended, or one broke.
async fn pumps(
    tcp: &TcpStream,
    stream: &mut PeerStream,
    course: &mut Course,
    brought: &mut Brought,
    session: &Session,
    moved: &impl Fn(Way, usize),
) -> Result<(), Broken> {
    let PeerStream { send, recv, .. } = stream;
    let Course { outbound, inbound } = course;
    let progress = &brought.progress;
    let outgoing = Lane {
        offered: &mut brought.outgoing,
        progress,
        session,
    };
    let incoming = Lane {
        offered: &mut brought.incoming,
        progress,
        session,
    };
    let into = pin!(pump_in(tcp, send, outbound, outgoing, |n| {
        moved(Way::IntoTunnel, n);
    }));
    let out = pin!(pump_out(tcp, recv, inbound, incoming, |n| {
        moved(Way::OutOfTunnel, n);
    }));
    let done = both(tcp, into, out).await;
    progress.end();
    if let Err(Broken::Tunnel(error)) = &done
        && is_offence(error)
    {
        session.offended(error);
    }
    done
}

/// What a direction has to do with lanes.
struct Lane<'g, L> {
    offered: &'g mut mpsc::Receiver<L>,
    progress: &'g Progress,
    /// The connection that the stream belongs to.
    session: &'g Session,
}

/// Runs both directions to their ends, and passes the end of `out` on.
async fn both(
    tcp: &TcpStream,
    mut into: impl Future<Output = Result<(), Broken>> + Unpin,
    mut out: impl Future<Output = Result<End, Broken>> + Unpin,
) -> Result<(), Broken> {
    tokio::select! {
        biased;
        ended = &mut into => {
            ended?;
            // Nothing is read from the socket any more, so its reset has to be watched for.
            tokio::select! {
                biased;
                // The socket is closed next, which tells its other side as well. To be told before
                // wakes this side, too.
                ended = &mut out => ended.map(drop),
                error = broken(tcp) => Err(Broken::Socket(error)),
            }
        }
        ended = &mut out => {
            match ended? {
                End::New => end_stream(tcp).map_err(Broken::Socket)?,
                End::PassedOn => {}
            }
            into.await
        }
    }
}

/// That a direction has come to its end.
enum End {
    /// It is to be passed on.
    New,
    PassedOn,
}

/// Moves bytes into the tunnel until the socket ends, and passes the end on.
async fn pump_in(
    tcp: &TcpStream,
    send: &mut SendStream,
    outbound: &mut Outbound,
    lane: Lane<'_, LaneOut>,
    moved: impl Fn(usize),
) -> Result<(), Broken> {
    let mut stop = pin!(send.stopped());
    let mut forget = pin!(sleep(FORGOTTEN_AFTER));
    // Boxed: most streams never ask.
    let mut asking = None;
    outbound.unread.forget_question();
    // What was kept when another stream took over from the last one.
    write_kept(tcp, send, outbound, lane.progress).await?;
    while !outbound.ended {
        if outbound.unread.is_to_ask() {
            let asked = ReadUpTo {
                stream: send.id().into(),
                position: outbound.written(),
            };
            asking = Some(Box::pin(read_by_peer(lane.session, asked)));
            outbound.unread.ask();
        }
        tokio::select! {
            biased;
            // The peer's side may be reset while ours has nothing to say.
            code = &mut stop => return Err(stopped(code)),
            Some(offered) = lane.offered.recv() => {
                let sending = send_by_lane(tcp, stop.as_mut(), offered, outbound, &moved);
                // Boxed: most streams never have a lane.
                Box::pin(sending).await?;
                write_kept(tcp, send, outbound, lane.progress).await?;
                continue;
            }
            () = answered(&mut asking), if asking.is_some() => {
                asking = None;
                outbound.unread.answered();
                continue;
            }
            // Nobody reads the socket while we wait.
            error = broken(tcp), if outbound.unread.are_many() => return Err(Broken::Socket(error)),
            ready = tcp.readable(), if !outbound.unread.are_many() => ready.map_err(Broken::Socket)?,
            () = &mut forget => {
                let next = match lane.session.is_worn() {
                    false => outbound.forget_before(std::time::Instant::now()),
                    true => None,
                };
                let next = next.map_or_else(|| Instant::now() + FORGOTTEN_AFTER, Instant::from_std);
                forget.as_mut().reset(next);
                continue;
            }
        }
        let mut buffer = StreamBuffer::lend();
        while lane.offered.is_empty() && !outbound.unread.are_many() {
            match tcp.try_read(&mut buffer) {
                Ok(0) => {
                    outbound.ended = true;
                    break;
                }
                Ok(n) => {
                    let bytes = Bytes::copy_from_slice(&buffer[..n]);
                    outbound.push(bytes, std::time::Instant::now());
                    moved(n);
                    write_kept(tcp, send, outbound, lane.progress).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Broken::Socket(error)),
            }
            consume_budget().await;
        }
    }
    finish(tcp, send, outbound).await
}

/// Gives to the stream all that it was not given yet.
async fn write_kept(
    tcp: &TcpStream,
    send: &mut SendStream,
    outbound: &mut Outbound,
    progress: &Progress,
) -> Result<(), Broken> {
    loop {
        let mut pieces: Vec<Bytes> = outbound.unwritten().take(TOGETHER).collect();
        if pieces.is_empty() {
            return Ok(());
        }
        let mut pieces = &mut pieces[..];
        let written = tokio::select! {
            biased;
            written = send.write_many_chunks(&mut pieces) => written.map_err(write_error)?,
            // Nobody reads the socket while we wait.
            error = broken(tcp) => return Err(Broken::Socket(error)),
        };
        outbound.wrote(written);
        progress.count(written);
    }
}

/// Waits until what was asked is answered.
async fn answered(asking: &mut Option<impl Future<Output = ()> + Unpin>) {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// Ends the stream and waits until the peer has all of it.
async fn finish(
    tcp: &TcpStream,
    send: &mut SendStream,
    outbound: &mut Outbound,
) -> Result<(), Broken> {
    if !outbound.finished {
        let finished = send.finish();
        finished.map_err(|closed| Broken::Tunnel(io::Error::other(closed)))?;
        outbound.finished = true;
    }
    tokio::select! {
        biased;
        code = send.stopped() => match code {
            Ok(None) => Ok(()),
            stop => Err(stopped(stop)),
        },
        error = broken(tcp) => Err(Broken::Socket(error)),
    }
}

/// Moves bytes out of the tunnel until the stream ends. The last ones may still be on their way
/// then: they leave with the end, which is to be passed on at once.
async fn pump_out(
    tcp: &TcpStream,
    recv: &mut Inflow,
    inbound: &mut Inbound,
    lane: Lane<'_, LaneIn>,
    moved: impl Fn(usize),
) -> Result<End, Broken> {
    let mut taken: Option<LaneIn> = None;
    let mut switch_at = None;
    // What came before another stream took over from the last one.
    pass_on_rest(tcp, recv, inbound).await?;
    while !inbound.ended {
        // The stream has bytes up to there, and then those after the lane.
        let at = inbound.at();
        let left = switch_at.map_or(CHUNK as u64, |switch_at: u64| switch_at.saturating_sub(at));
        if left == 0
            && let Some(lane_in) = taken.take()
        {
            switch_at = None;
            Box::pin(receive_by_lane(tcp, recv, lane_in, inbound, &moved)).await?;
            continue;
        }
        let most = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = tokio::select! {
            biased;
            Some(offered) = lane.offered.recv(), if taken.is_none() => {
                taken = Some(offered);
                continue;
            }
            known = switch_of(&mut taken), if taken.is_some() && switch_at.is_none() => {
                switch_at = Some(known?);
                continue;
            }
            chunk = recv.piece(most) => chunk.map_err(Broken::Tunnel)?,
        };
        let Some(chunk) = chunk else {
            if switch_at.is_some() {
                // It was to go on by a lane.
                return Err(Broken::Tunnel(io::ErrorKind::UnexpectedEof.into()));
            }
            inbound.ended = true;
            break;
        };
        // Where the stream is to be left nothing is read beyond.
        let length = take_run(tcp, recv, inbound, chunk, switch_at.is_some()).await?;
        moved(length);
        lane.progress.count(length);
        pass_on_rest(tcp, recv, inbound).await?;
        if !inbound.ended {
            consume_budget().await;
        }
    }
    match std::mem::replace(&mut inbound.passed_on, true) {
        false => Ok(End::New),
        true => Ok(End::PassedOn),
    }
}

async fn switch_of(lane: &mut Option<LaneIn>) -> Result<u64, Broken> {
    match lane {
        Some(lane) => switch(lane).await,
        None => std::future::pending().await,
    }
}

/// What the peer has stopped the stream for.
pub(crate) fn stopped(stop: Result<Option<VarInt>, iroh::endpoint::StoppedError>) -> Broken {
    match stop {
        Ok(Some(code)) => write_error(WriteError::Stopped(code)),
        Ok(None) => Broken::Tunnel(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => write_error(error.into()),
    }
}

fn write_error(error: WriteError) -> Broken {
    Broken::Tunnel(error.into())
}

/// What the peer has reset the stream for.
pub(crate) fn read_error(error: ReadError) -> Broken {
    Broken::Tunnel(error.into())
}

//! Carries a TCP connection over a stream as if there were nobody between its ends.
//!
//! * An end of stream passes as an end of stream and leaves the other way open (RFC 9293
//!   section 3.6), at either end of the tunnel.
//! * A reset passes as a reset, at once: QUIC's RESET_STREAM and STOP_SENDING (RFC 9000
//!   section 3.5).
//! * What a slow reader does not take stops its writer: QUIC's flow control passes the
//!   back-pressure on.
//! * It is over when the peer has acknowledged all that was sent, not when it was queued.
//! * Bytes that are many may go by a lane for a while (see [`crate::tcp_carrier`]); their end
//!   and their reset never do.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use edgemesh_sockets::{ResetOnDrop, StreamBuffer, broken, end_stream};
use iroh::endpoint::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::coop::consume_budget;

use crate::chunk_run::pass_on;
use crate::peer_stream::PeerStream;
use crate::tcp_carrier::{
    Guided, LaneIn, LaneOut, Lanes, Progress, Sent, receive_by_lane, send_by_lane, switch,
};

/// Bytes taken from a stream at once. They are not copied; this bounds how long one stream
/// keeps the others of its worker waiting.
const CHUNK: usize = 64 * 1024;

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

/// Carries until both sides have ended their part, or one broke the connection; then the
/// other is reset, too.
pub(crate) async fn carry(
    socket: ResetOnDrop,
    mut stream: PeerStream,
    lanes: Lanes,
    moved: impl Fn(Way, usize),
) -> Result<(), Broken> {
    {
        let PeerStream { send, recv, .. } = &mut stream;
        let tcp = socket.stream();
        let guided = Guided::new(lanes);
        let progress = &guided.progress;
        let into = pin!(pump_in(tcp, send, guided.outgoing, progress, |n| {
            moved(Way::IntoTunnel, n);
        }));
        let out = pin!(pump_out(tcp, recv, guided.incoming, progress, |n| {
            moved(Way::OutOfTunnel, n);
        }));
        tokio::select! {
            biased;
            done = both(tcp, into, out) => done?,
            never = guided.guide.run() => match never {},
        }
    }
    socket.close_in_order();
    stream.close_in_order();
    Ok(())
}

async fn both(
    tcp: &TcpStream,
    mut into: impl Future<Output = Result<(), Broken>> + Unpin,
    mut out: impl Future<Output = Result<(), Broken>> + Unpin,
) -> Result<(), Broken> {
    tokio::select! {
        ended = &mut into => {
            ended?;
            // Nothing is read from the socket any more, so its reset has to be watched for.
            tokio::select! {
                biased;
                done = &mut out => done,
                error = broken(tcp) => Err(Broken::Socket(error)),
            }
        }
        ended = &mut out => {
            ended?;
            into.await
        }
    }
}

/// Moves bytes into the tunnel until the socket ends, and passes the end on.
async fn pump_in(
    tcp: &TcpStream,
    send: &mut SendStream,
    mut lanes: mpsc::Receiver<LaneOut>,
    progress: &Arc<Progress>,
    moved: impl Fn(usize),
) -> Result<(), Broken> {
    let mut stop = pin!(send.stopped());
    let mut at = 0;
    loop {
        tokio::select! {
            biased;
            // The peer's side may be reset while ours has nothing to say.
            code = &mut stop => return Err(stopped(code)),
            Some(lane) = lanes.recv() => {
                let sending = send_by_lane(tcp, send, stop.as_mut(), lane, at, &moved);
                let sent: Sent = Box::pin(sending).await?;
                if sent.ended {
                    return finish(tcp, send).await;
                }
                at = sent.at;
                continue;
            }
            ready = tcp.readable() => ready.map_err(Broken::Socket)?,
        }
        let mut buffer = StreamBuffer::lend();
        while lanes.is_empty() {
            match tcp.try_read(&mut buffer) {
                Ok(0) => return finish(tcp, send).await,
                Ok(n) => {
                    write_in(tcp, send, &buffer[..n]).await?;
                    moved(n);
                    at += n as u64;
                    progress.count(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Broken::Socket(error)),
            }
            consume_budget().await;
        }
    }
}

/// Writes all of it to the stream.
pub(crate) async fn write_in(
    tcp: &TcpStream,
    send: &mut SendStream,
    bytes: &[u8],
) -> Result<(), Broken> {
    tokio::select! {
        biased;
        written = send.write_all(bytes) => written.map_err(write_error),
        // Nobody reads the socket while we wait.
        error = broken(tcp) => Err(Broken::Socket(error)),
    }
}

/// Ends the stream and waits until the peer has all of it.
async fn finish(tcp: &TcpStream, send: &mut SendStream) -> Result<(), Broken> {
    send.finish()
        .map_err(|closed| Broken::Tunnel(io::Error::other(closed)))?;
    tokio::select! {
        biased;
        code = send.stopped() => match code {
            Ok(None) => Ok(()),
            stop => Err(stopped(stop)),
        },
        error = broken(tcp) => Err(Broken::Socket(error)),
    }
}

/// Moves bytes out of the tunnel until the stream ends, and passes the end on.
async fn pump_out(
    tcp: &TcpStream,
    recv: &mut RecvStream,
    mut lanes: mpsc::Receiver<LaneIn>,
    progress: &Arc<Progress>,
    moved: impl Fn(usize),
) -> Result<(), Broken> {
    let mut lane = None;
    let mut switch_at = None;
    let mut at: u64 = 0;
    loop {
        // The stream has bytes up to there, and then those after the lane.
        let left = switch_at.map_or(CHUNK as u64, |switch_at: u64| switch_at.saturating_sub(at));
        if left == 0
            && let Some(lane) = lane.take()
        {
            switch_at = None;
            let receiving = receive_by_lane(tcp, recv, lane, at, &moved);
            at = Box::pin(receiving).await?;
            continue;
        }
        let most = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = tokio::select! {
            biased;
            Some(offered) = lanes.recv(), if lane.is_none() => {
                lane = Some(offered);
                continue;
            }
            known = switch_of(&mut lane), if lane.is_some() && switch_at.is_none() => {
                switch_at = Some(known?);
                continue;
            }
            chunk = recv.read_chunk(most) => chunk.map_err(read_error)?,
        };
        let Some(chunk) = chunk else {
            if switch_at.is_some() {
                // It was to go on by a lane.
                return Err(Broken::Tunnel(io::ErrorKind::UnexpectedEof.into()));
            }
            break;
        };
        // Where the stream is to be left nothing is read beyond.
        let length = pass_on(tcp, recv, chunk, switch_at.is_some()).await?;
        moved(length);
        at += length as u64;
        progress.count(length);
        consume_budget().await;
    }
    end_stream(tcp).map_err(Broken::Socket)
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

//! Dials relays for the transport, and another one in the place of a relay that is away.
//!
//! The transport by itself (iroh 1.4) is at the mercy of a relay that does not answer. While
//! it waits to try that again, up to 16 s (`ActiveRelayActor::sleep_backoff`), it takes no
//! packet out of the relay's queue; as soon as that is full, the one task that passes on
//! packets for *all* relays waits for room in it (`RelayActor::try_send_datagram`). A path over
//! the relay is kept for 30 s all the same, and a connection gets no path over another one.
//!
//! So it is given a proxy, which is this, on a loopback address. Here a relay is tried again
//! several times a second. When it is away for a second, its *stand-in* is dialled: the relay
//! that comes after it in the order of their nodes' names, so that all nodes come to the same
//! one, which serves them apart from its own clients (see [`crate::relay_rooms`]). The transport
//! does not know; its paths, and the streams on them, go on. When the relay answers again, the
//! detour's connections are cut, and the transport dials anew.
//!
//! Nobody gets anywhere but to relays through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::{join, join_all};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::relay_address::RelayAddress;
use crate::relay_book::RelayBook;
use crate::relay_detours::{RelayDetours, StandIns};
use crate::relay_request::RelayRequest;
use crate::ways_to_dial::is_of_this_host;

/// A relay that is away for longer is stood in for. One that restarts is back before.
const AWAY: Duration = Duration::from_secs(1);
/// How long a relay may take to accept a connection, or to answer a probe.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two attempts to reach a relay that somebody waits for.
const AGAIN: Duration = Duration::from_millis(100);
/// How often is looked whether a relay that is stood in for is back.
const LOOK: Duration = Duration::from_millis(500);
/// How often is looked whether this host still has the address that a connection is from.
const LOOK_AT_ADDRESS: Duration = Duration::from_millis(250);
/// What was sent to a relay and not acknowledged for this long ends the connection with it.
const SILENCE: Duration = Duration::from_millis(2500);
/// A connection on which nothing is sent is tried after this time, so that its end is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long the transport may take to say what it wants; it does at once.
const REQUEST: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD: usize = 2048;
/// Connections at a time. The transport has one with each relay that it uses.
const MOST: usize = 256;
/// Bytes that are moved at once.
const BUFFER: usize = 64 * 1024;
/// Pause after a failure to accept that is not about one connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What a relay is asked to find out whether it is back.
const PING: &[u8] = b"GET /ping HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
/// How its answer begins.
const PONG: &[u8] = b"HTTP/1.1 200";

/// The proxy.
#[derive(Debug)]
pub(crate) struct RelayDialer {
    listener: TcpListener,
    address: SocketAddr,
}

/// What each connection needs.
#[derive(Clone, Debug)]
struct Lines {
    book: RelayBook,
    detours: RelayDetours,
}

/// A connection with a relay, or with its stand-in.
struct Line {
    stream: TcpStream,
    stand_in: Option<RelayAddress>,
}

impl RelayDialer {
    /// Opens its socket.
    ///
    /// # Errors
    ///
    /// When there is no loopback address or no port.
    pub(crate) async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Dials until `stop`.
    pub(crate) async fn run(self, book: RelayBook, detours: RelayDetours, stop: CancellationToken) {
        let lines = Lines { book, detours };
        let mut tasks = JoinSet::new();
        tasks.spawn(lines.clone().await_returns());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = tasks.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((client, _)) if tasks.len() <= MOST => {
                        let lines = lines.clone();
                        tasks.spawn(async move {
                            if let Err(error) = lines.serve(client).await {
                                debug!(%error, "a connection with a relay came to its end");
                            }
                        });
                    }
                    Ok(_) => debug!("too many connections with relays at once"),
                    Err(error) => {
                        warn!(%error, "the transport cannot reach relays; it is tried again");
                        sleep(BACK_OFF).await;
                    }
                }
            }
        }
        tasks.shutdown().await;
    }
}

impl Lines {
    async fn serve(self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let head = timeout(REQUEST, read_head(&mut client)).await??;
        match RelayRequest::parse(&head) {
            Some(RelayRequest::Line(relay)) => self.connect(client, relay).await,
            Some(RelayRequest::Probe(relay)) if self.knows(relay) => {
                let mut stream = dial(relay).await?;
                stream.write_all(&head).await?;
                copy(&mut client, &mut stream).await
            }
            Some(RelayRequest::Probe(_)) | None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn knows(&self, relay: RelayAddress) -> bool {
        self.book.get().is_relay(relay)
    }

    async fn connect(self, mut client: TcpStream, relay: RelayAddress) -> io::Result<()> {
        let mut detours = self.detours.follow();
        let mut line = tokio::select! {
            line = self.line(relay) => line,
            // It says nothing before it is answered, so this is its end.
            gone = client.readable() => return gone,
        };
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let (stand_in, from) = (line.stand_in, line.stream.local_addr()?);
        let changed = |detours: &StandIns| detours.get(&relay).copied() != stand_in;
        tokio::select! {
            copied = copy(&mut client, &mut line.stream) => copied,
            // Back on the straight way, or on to the stand-in: the transport dials anew.
            _ = detours.wait_for(changed) => Ok(()),
            // Nothing comes back to an address that this node has no more.
            () = is_lost(from.ip()) => Ok(()),
        }
    }

    /// A connection with the relay or its stand-in, however long that takes: an answer that it
    /// failed would make the transport pause.
    async fn line(&self, relay: RelayAddress) -> Line {
        let mut away_since = None;
        loop {
            if let Some(stand_in) = self.detours.stand_in(relay)
                && let Ok(stream) = dial(stand_in).await
            {
                return Line {
                    stream,
                    stand_in: Some(stand_in),
                };
            }
            // A relay that is none any more is waited for, until the transport gives it up.
            if self.knows(relay) {
                if let Ok(stream) = dial(relay).await {
                    self.is_back(relay);
                    return Line {
                        stream,
                        stand_in: None,
                    };
                }
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= AWAY {
                    self.begin_detour(relay).await;
                    continue;
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Finds the stand-in of a relay that does not answer.
    async fn begin_detour(&self, relay: RelayAddress) {
        for stand_in in self.book.get().stand_ins(relay) {
            let (stands_in, is_back) = join(answers(stand_in), answers(relay)).await;
            // After this node's own uplink was away both answer: a detour that others don't
            // take would lead past them.
            if is_back {
                return;
            }
            if stands_in {
                if self.detours.begin(relay, stand_in) {
                    info!(%relay, %stand_in, "a relay is away: another stands in for it");
                }
                return;
            }
        }
        sleep(AGAIN).await;
    }

    fn is_back(&self, relay: RelayAddress) {
        if self.detours.end(relay) {
            info!(%relay, "a relay is back");
        }
    }

    /// Ends detours around relays that are back.
    async fn await_returns(self) {
        let mut detours = self.detours.follow();
        while detours
            .wait_for(|detours| !detours.is_empty())
            .await
            .is_ok()
        {
            sleep(LOOK).await;
            let away = self.detours.away().into_iter();
            join_all(away.map(|relay| self.look_for(relay))).await;
        }
    }

    async fn look_for(&self, relay: RelayAddress) {
        if !self.knows(relay) || answers(relay).await {
            self.is_back(relay);
        }
    }
}

/// Waits until this host has the address no more.
async fn is_lost(ip: IpAddr) {
    while is_of_this_host(ip) {
        sleep(LOOK_AT_ADDRESS).await;
    }
}

async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD || client.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}

async fn dial(relay: RelayAddress) -> io::Result<TcpStream> {
    let stream = timeout(ANSWER, TcpStream::connect(relay.socket_addr())).await??;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE);
    socket.set_tcp_keepalive(&keep_alive.with_interval(KEEP_ALIVE))?;
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Whether a relay answers, and not just the kernel of its host.
async fn answers(relay: RelayAddress) -> bool {
    let asked = async {
        let mut stream = dial(relay).await?;
        stream.write_all(PING).await?;
        let mut answer = [0; PONG.len()];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer == *PONG)
    };
    matches!(timeout(ANSWER, asked).await, Ok(Ok(true)))
}

async fn copy(client: &mut TcpStream, relay: &mut TcpStream) -> io::Result<()> {
    copy_bidirectional_with_sizes(client, relay, BUFFER, BUFFER).await?;
    Ok(())
}

#[cfg(test)]
#[path = "relay_dialer_tests.rs"]
mod tests;

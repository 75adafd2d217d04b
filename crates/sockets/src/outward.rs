//! Sockets that lead outward, each with the agent's mark.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// What we connect to on behalf of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointAddr(pub SocketAddr);

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A connection without traffic is probed after this time, so that neither side can be gone
/// unnoticed for long: below the shortest usual idle limits of NATs at the edge.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// What Linux says where a family is missing; std has no kind for it.
const EAFNOSUPPORT: i32 = 97;

/// Makes the sockets that lead outward.
#[derive(Clone, Copy, Debug)]
pub struct OutwardSockets {
    mark: Option<u32>,
}

impl OutwardSockets {
    /// All of them carry `mark` (`SO_MARK`), which takes `CAP_NET_ADMIN`.
    #[must_use]
    pub fn new(mark: Option<u32>) -> Self {
        Self { mark }
    }

    /// Whether this process may set the mark at all.
    ///
    /// # Errors
    ///
    /// When it may not, or when sockets cannot be made.
    pub fn check(self) -> io::Result<()> {
        // The family does not matter; where there is no IPv4, IPv6 tells as much.
        self.open(Domain::IPV4, Type::DGRAM)
            .or_else(|error| match error.raw_os_error() {
                Some(code) if code == EAFNOSUPPORT => self.open(Domain::IPV6, Type::DGRAM),
                Some(_) | None => Err(error),
            })
            .map(drop)
    }

    /// Connects to `endpoint`; takes as long as the kernel does.
    ///
    /// # Errors
    ///
    /// When the endpoint refuses or cannot be reached, or this host cannot try.
    pub async fn connect_tcp(self, endpoint: EndpointAddr) -> io::Result<TcpStream> {
        let socket = self.open(Domain::for_address(endpoint.0), Type::STREAM)?;
        tune(&socket)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        socket.connect(endpoint.0).await
    }

    /// A UDP socket that sends to `endpoint` and receives from nobody else.
    ///
    /// # Errors
    ///
    /// When there is no way to it, or this host cannot try.
    pub fn connect_udp(self, endpoint: EndpointAddr) -> io::Result<UdpSocket> {
        let socket = self.open(Domain::for_address(endpoint.0), Type::DGRAM)?;
        socket.connect(&endpoint.0.into())?;
        UdpSocket::from_std(socket.into())
    }

    fn open(self, domain: Domain, kind: Type) -> io::Result<Socket> {
        let socket = open(domain, kind)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}

/// What every relayed stream gets, on both sides: no delay, and probes while it is silent.
/// Connections have it from their listener, when that was tuned.
///
/// There is no `TCP_USER_TIMEOUT`: with it the kernel also ends a connection whose other side
/// answers every probe and merely does not read for that long (`tcp_probe_timer` in Linux's
/// `net/ipv4/tcp_timer.c`), which nobody would do to it without us. Data that is not
/// acknowledged is given up as the host's other connections are (`net.ipv4.tcp_retries2`).
///
/// # Errors
///
/// When the stream is broken already.
pub fn tune(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// A socket of ours as all begin: it never blocks.
///
/// # Errors
///
/// The kernel's, when it can make no such socket.
pub fn open(domain: Domain, kind: Type) -> io::Result<Socket> {
    let protocol = match kind {
        Type::DGRAM => Protocol::UDP,
        _ => Protocol::TCP,
    };
    Socket::new(domain, kind.nonblocking(), Some(protocol))
}

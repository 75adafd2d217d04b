//! The one place where sockets are made.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::addrs::{EndpointAddr, ListenAddr};

/// Connections that may wait in the kernel until we accept them (it caps this at
/// `net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// A connection without traffic is probed after this time, so that neither side can be gone
/// unnoticed for long: below the shortest usual idle limits of NATs at the edge.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Asked for on UDP portals, where a whole burst of all clients meets in one socket; the kernel
/// caps it at `net.core.rmem_max`.
const UDP_BUFFER: usize = 4 << 20;
/// What Linux says where a family is missing; std has no kind for it.
const EAFNOSUPPORT: i32 = 97;

/// Makes the sockets that lead outward, each with the agent's mark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutwardSockets {
    mark: Option<u32>,
}

impl OutwardSockets {
    pub(crate) fn new(mark: Option<u32>) -> Self {
        Self { mark }
    }

    /// Whether this process may set the mark at all.
    pub(crate) fn check(self) -> io::Result<()> {
        // The family does not matter; where there is no IPv4, IPv6 tells as much.
        self.open(Domain::IPV4, Type::DGRAM)
            .or_else(|error| match error.raw_os_error() {
                Some(code) if code == EAFNOSUPPORT => self.open(Domain::IPV6, Type::DGRAM),
                Some(_) | None => Err(error),
            })
            .map(drop)
    }

    /// Connects to `endpoint`; takes as long as the kernel does.
    pub(crate) async fn connect_tcp(self, endpoint: EndpointAddr) -> io::Result<TcpStream> {
        let socket = self.open(Domain::for_address(endpoint.0), Type::STREAM)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let stream = socket.connect(endpoint.0).await?;
        tune(&stream)?;
        Ok(stream)
    }

    /// A UDP socket that sends to `endpoint` and receives from nobody else.
    pub(crate) fn connect_udp(self, endpoint: EndpointAddr) -> io::Result<UdpSocket> {
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

/// A TCP listener, bound and listening.
pub(crate) fn listen_tcp(at: ListenAddr) -> io::Result<TcpListener> {
    let socket = inward(at.0, Type::STREAM)?;
    // Connections of an earlier run in TIME_WAIT are no reason not to start.
    socket.set_reuse_address(true)?;
    socket.bind(&at.0.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A UDP socket bound to `at`.
pub(crate) fn bind_udp(at: ListenAddr) -> io::Result<UdpSocket> {
    let socket = inward(at.0, Type::DGRAM)?;
    // More is welcome, the default will do.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    socket.bind(&at.0.into())?;
    UdpSocket::from_std(socket.into())
}

/// A TCP socket that holds its port and nothing more: who connects is reset by the kernel.
pub(crate) fn reserve_tcp(at: SocketAddr) -> io::Result<Socket> {
    let socket = inward(at, Type::STREAM)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// A UDP socket that holds its port and receives from nobody but itself: who sends to it
/// is told by the kernel that the port is unreachable.
pub(crate) fn reserve_udp(at: SocketAddr) -> io::Result<Socket> {
    let socket = inward(at, Type::DGRAM)?;
    socket.bind(&at.into())?;
    socket.connect(&at.into())?;
    Ok(socket)
}

/// Waits until [`receive_now`] has something to tell. Tokio does not count a refusal by the
/// endpoint as readable.
pub(crate) async fn await_datagram(socket: &UdpSocket) -> io::Result<()> {
    let either = Interest::READABLE.add(Interest::ERROR);
    socket.ready(either).await.map(|_| ())
}

/// The next datagram of a connected socket, or what became of an earlier one that was sent.
pub(crate) fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    // One at a time: tokio's `try_io` knows no two interests at once.
    let mut read = |interest| socket.try_io(interest, || (&*SockRef::from(socket)).read(buffer));
    match read(Interest::READABLE) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => read(Interest::ERROR),
        read => read,
    }
}

/// Sends a datagram on a connected socket, now or not at all. (Tokio's own `try_send` does not
/// even try on a socket whose readiness has not been reported yet, as a new one's.)
pub(crate) fn send_now(socket: &UdpSocket, datagram: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send(datagram)
}

/// As [`send_now`], to an address.
pub(crate) fn send_to_now(
    socket: &UdpSocket,
    datagram: &[u8],
    to: SocketAddr,
) -> io::Result<usize> {
    SockRef::from(socket).send_to(datagram, &to.into())
}

/// What every relayed stream gets, on both sides.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Makes closing `stream` reset the connection.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // It can only fail on a socket that has no connection any more.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The address that leaves the port to the kernel.
pub(crate) fn any_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

fn inward(at: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = open(Domain::for_address(at), kind)?;
    // The intercept address may be put on its device, or put back, a moment after us.
    match at.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {}
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn open(domain: Domain, kind: Type) -> io::Result<Socket> {
    let protocol = match kind {
        Type::DGRAM => Protocol::UDP,
        _ => Protocol::TCP,
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

//! Sockets that lead outward, each with the agent's mark.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UdpSocket};

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
/// What Linux says of a connection that it has begun to make.
const EINPROGRESS: i32 = 115;

/// What we do first on a new connection.
#[derive(Clone, Copy, Debug)]
enum First {
    Speaks,
    ListensOrSpeaks,
}

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
        self.connect(endpoint, First::ListensOrSpeaks).await
    }

    /// As [`Self::connect_tcp`], for who has something to send as soon as he is connected: the
    /// acknowledgement that ends the handshake goes with it, which spares a packet. Who does not
    /// send keeps the endpoint waiting for it, up to 200 ms.
    ///
    /// # Errors
    ///
    /// As [`Self::connect_tcp`].
    pub async fn connect_tcp_to_send(self, endpoint: EndpointAddr) -> io::Result<TcpStream> {
        self.connect(endpoint, First::Speaks).await
    }

    async fn connect(self, endpoint: EndpointAddr, first: First) -> io::Result<TcpStream> {
        let socket = self.open(Domain::for_address(endpoint.0), Type::STREAM)?;
        tune(&socket)?;
        if matches!(first, First::Speaks) {
            // Before the handshake it means: not even its end needs an acknowledgement of its
            // own (`tcp_rcv_synsent_state_process` in Linux's `net/ipv4/tcp_input.c`).
            socket.set_tcp_quickack(false)?;
        }
        match socket.connect(&endpoint.0.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Within a node the handshake was over before connect returned, whatever that said.
        let is_connected = socket.peer_addr().is_ok();
        let stream = TcpStream::from_std(socket.into())?;
        if !is_connected {
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
        }
        Ok(stream)
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

/// Whether there is something to read from `stream`, which is not read.
#[must_use]
pub fn has_data(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_ok_and(|bytes| bytes > 0)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_sends_at_once_is_heard_as_who_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = EndpointAddr(listener.local_addr().unwrap());
        let sockets = OutwardSockets::new(None);
        for speaks in [true, false] {
            let mut near = if speaks {
                sockets.connect_tcp_to_send(endpoint).await.unwrap()
            } else {
                sockets.connect_tcp(endpoint).await.unwrap()
            };
            near.write_all(b"x").await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            far.readable().await.unwrap();
            assert!(has_data(&far) && has_data(&far));
            far.read_exact(&mut [0]).await.unwrap();
            assert!(!has_data(&far));
        }
    }

    #[tokio::test]
    async fn what_a_connection_is_tuned_to_comes_from_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tune(&listener).unwrap();
        let _near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let far = SockRef::from(&far);
        assert!(far.tcp_nodelay().unwrap() && far.keepalive().unwrap());
        assert_eq!(far.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(far.tcp_keepalive_interval().unwrap(), KEEPALIVE_EVERY);
        assert_eq!(far.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }
}

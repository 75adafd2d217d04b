//! Requests from a place in the lab.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::await_until::await_ok;
use crate::namespace::Namespace;
use crate::process::Program;

/// How long a client waits for a connection or for the next bytes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long for a link that was made just now to carry packets.
const LINK_PATIENCE: Duration = Duration::from_secs(30);
/// How long for the answer to a datagram.
const UDP_PATIENCE: Duration = Duration::from_secs(2);
/// Where UDP sockets get their ports: below those that the kernel hands out (32768 and up), and
/// below those at which something of the lab listens.
const OWN_PORTS: Range<u16> = 9_000..20_000;

/// Somewhere in the lab programs run and requests come from: a node, a pod.
pub trait Place {
    /// Its network namespace.
    fn namespace(&self) -> &Namespace;

    /// A program that will run here.
    fn program(&self, name: impl AsRef<OsStr>) -> Program {
        self.namespace().program(name)
    }

    /// Opens a TCP connection from here, with 5 s to be accepted and 5 s for each read
    /// or write.
    ///
    /// # Errors
    ///
    /// The kernel's, as it is: its kind tells a refusal from a time-out.
    fn connect(&self, to: impl ToSocket) -> io::Result<TcpStream> {
        connect_from(self.namespace(), to.to_socket()?)
    }

    /// Says `text` to an identity server ([`crate::Serve::Identity`]) over TCP and returns
    /// who answered.
    ///
    /// # Errors
    ///
    /// When nobody answers, or somebody who is no such server.
    fn ask(&self, to: impl ToSocket, text: &str) -> Result<Answer> {
        let to = to.to_socket()?;
        let stream = connect_from(self.namespace(), to).with_context(|| {
            format!("no TCP connection from {} to {to}", self.namespace().name())
        })?;
        request(stream, text)
            .with_context(|| format!("no answer from {to} to {}", self.namespace().name()))
    }

    /// Sends one datagram from a fresh socket and returns the answer. The socket is
    /// connected, so that an answer from any other address counts for nothing and a
    /// refusal is seen at once.
    ///
    /// # Errors
    ///
    /// The kernel's, as it is; `WouldBlock` after 2 s without an answer.
    fn udp_exchange(&self, to: impl ToSocket, datagram: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.udp_socket(to)?;
        socket.send(datagram)?;
        let mut answer = vec![0; 65536];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }

    /// A UDP socket here, connected to `to`, with 2 s for each answer. Its port is one that no
    /// other socket of this process had lately: the kernel, which draws lots, would now and then
    /// give the same one twice, and what looks like a new flow would be one that is known.
    ///
    /// # Errors
    ///
    /// The kernel's, as it is.
    fn udp_socket(&self, to: impl ToSocket) -> io::Result<UdpSocket> {
        let to = to.to_socket()?;
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let make = || {
            let socket = udp_socket_with_fresh_port(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(UDP_PATIENCE))?;
            Ok(socket)
        };
        self.namespace().run(make).map_err(io::Error::other)?
    }

    /// As [`Self::ask`], over UDP ([`crate::Serve::UdpIdentity`]).
    ///
    /// # Errors
    ///
    /// When nobody answers, or somebody who is no such server.
    fn ask_udp(&self, to: impl ToSocket, text: &str) -> Result<Answer> {
        let to = to.to_socket()?;
        let answer = self
            .udp_exchange(to, text.as_bytes())
            .with_context(|| format!("no UDP answer from {to} to {}", self.namespace().name()))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (greeting, echo) = answer
            .split_once('\n')
            .ok_or_else(|| anyhow!("{to} is no identity server: it answered {answer:?}"))?;
        Answer::parse(greeting, echo)
    }
}

fn udp_socket_with_fresh_port(any: IpAddr) -> io::Result<UdpSocket> {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in OWN_PORTS {
        let turn = TAKEN.fetch_add(1, Ordering::Relaxed) % OWN_PORTS.len() as u16;
        match UdpSocket::bind((any, OWN_PORTS.start + turn)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            bound => return bound,
        }
    }
    Err(last)
}

/// Anything that names an address and port: a [`SocketAddr`], or text such as
/// `10.96.10.1:80`.
pub trait ToSocket {
    /// The address and port.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for text that is none.
    fn to_socket(&self) -> io::Result<SocketAddr>;
}

impl ToSocket for SocketAddr {
    fn to_socket(&self) -> io::Result<SocketAddr> {
        Ok(*self)
    }
}

impl ToSocket for &str {
    fn to_socket(&self) -> io::Result<SocketAddr> {
        self.parse().map_err(|_| {
            let text = format!("`{self}` is no address and port");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
    }
}

impl ToSocket for &String {
    fn to_socket(&self) -> io::Result<SocketAddr> {
        self.as_str().to_socket()
    }
}

/// Who answered a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server's pod.
    pub server: String,
    /// The address the server saw the request come from.
    pub client: SocketAddr,
    /// What the server sent back of the request's text.
    pub echo: String,
}

impl Answer {
    fn parse(greeting: &str, echo: &str) -> Result<Self> {
        let (server, client) = greeting
            .trim_end()
            .split_once(" saw ")
            .ok_or_else(|| anyhow!("not an identity server's greeting: {greeting:?}"))?;
        Ok(Self {
            server: server.to_owned(),
            client: client
                .parse()
                .with_context(|| format!("no client address in {greeting:?}"))?,
            echo: echo.to_owned(),
        })
    }
}

/// Opens a TCP connection from `namespace`, with 5 s to be accepted and 5 s for each
/// read or write.
///
/// # Errors
///
/// The kernel's, as it is.
pub fn connect_from(namespace: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = namespace
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Says `text` over a fresh connection to an identity server, ends its own half, and
/// reads until the server ends the other.
///
/// # Errors
///
/// When the connection breaks or the server is none of that kind.
pub fn request(mut stream: TcpStream, text: &str) -> Result<Answer> {
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reader = BufReader::new(stream);
    let mut greeting = String::new();
    reader.read_line(&mut greeting)?;
    let mut echo = String::new();
    reader.read_to_string(&mut echo)?;
    Answer::parse(&greeting, &echo)
}

/// Waits until `namespace` and the owner of `address` have exchanged packets, so that both
/// know each other's hardware address: a link that was made just now may lose its first
/// ones, and a lost datagram would look like somebody's mistake.
pub(crate) fn await_link(namespace: &Namespace, address: IpAddr) -> Result<()> {
    // Nobody listens on the discard port (RFC 863): being refused takes a packet each way.
    let to = SocketAddr::new(address, 9);
    let what = format!("{} has a link to {address}", namespace.name());
    // On a machine that is busy enough, even the kernel gives up asking for a neighbour.
    await_ok(LINK_PATIENCE, &what, || match connect_from(namespace, to) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error.into()),
    })
}

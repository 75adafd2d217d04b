//! The server of all clients: two threads that wait for many connections each, and one for
//! datagrams.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::Namespace;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::datagrams::ECHO;
use super::requests::{REQUEST, RESPONSE};
use super::{BULK, DATAGRAMS, ONCE, REQUESTS};

/// How many threads serve TCP.
const THREADS: usize = 2;
/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How many connections are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// What is read at once.
const BUFFER: usize = 256 << 10;
/// What the kernel may keep of datagrams, as far as it lets us.
const DATAGRAM_BUFFER: usize = 8 << 20;

/// What a server has received.
#[derive(Debug, Default)]
pub struct Counted {
    bytes: AtomicU64,
    datagrams: AtomicU64,
}

impl Counted {
    /// Bytes at [`BULK`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Datagrams that wanted no answer.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }
}

/// Servers on all ports of one namespace. They end when it is dropped.
#[derive(Debug)]
pub struct LoadServer {
    counted: Arc<Counted>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bulk,
    Once,
    Requests,
}

impl LoadServer {
    /// Starts them, on all IPv4 addresses of `namespace`.
    ///
    /// # Errors
    ///
    /// When a port is taken.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        namespace
            .run(Self::start_here)?
            .with_context(|| format!("cannot serve in {}", namespace.name()))
    }

    fn start_here() -> Result<Self> {
        let mut server = Self {
            counted: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
        };
        let kinds = [
            (BULK, Kind::Bulk),
            (ONCE, Kind::Once),
            (REQUESTS, Kind::Requests),
        ];
        let listeners: Result<Vec<_>> = kinds
            .into_iter()
            .map(|(port, kind)| Ok((listen(port)?, kind)))
            .collect();
        let listeners = Arc::new(listeners?);
        for _ in 0..THREADS {
            let listeners = Arc::clone(&listeners);
            server.add("load server", move |counted, end| {
                Connections::new(&listeners, counted)?.serve(end)
            })?;
        }
        let socket = datagram_socket()?;
        server.add("datagrams", move |counted, end| {
            take_datagrams(&socket, counted, end)
        })?;
        Ok(server)
    }

    fn add(
        &mut self,
        name: &str,
        job: impl FnOnce(&Counted, &AtomicBool) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (counted, end) = (Arc::clone(&self.counted), Arc::clone(&self.end));
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || job(&counted, &end))
            .context("cannot start a thread")?;
        self.threads.push(thread);
        Ok(())
    }

    /// What it has received so far.
    #[must_use]
    pub fn counted(&self) -> &Counted {
        &self.counted
    }

    /// As [`Self::counted`], to be kept beside it.
    #[must_use]
    pub fn shared(&self) -> Arc<Counted> {
        Arc::clone(&self.counted)
    }
}

impl Drop for LoadServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that failed has failed its clients, who tell.
            let _ = thread.join();
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    let at = std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket
        .bind(&at.into())
        .with_context(|| format!("port {port}"))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn datagram_socket() -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(DATAGRAM_BUFFER)?;
    let at = std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, DATAGRAMS));
    socket
        .bind(&at.into())
        .with_context(|| format!("port {DATAGRAMS}"))?;
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn take_datagrams(socket: &UdpSocket, counted: &Counted, end: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if buffer.first() == Some(&ECHO) => {
                // A client that is gone refuses.
                let _ = socket.send_to(&buffer[..length], from);
            }
            Ok(_) => {
                counted.datagrams.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing came for a while, or a client refused what was sent to it.
            Err(error) if is_passing(error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused
    )
}

/// The connections of one thread.
struct Connections<'l> {
    listeners: &'l [(TcpListener, Kind)],
    counted: &'l Counted,
    epoll: Epoll,
    open: BTreeMap<u64, Open>,
    next: u64,
    buffer: Vec<u8>,
}

struct Open {
    stream: TcpStream,
    kind: Kind,
    /// What has come of a request that is not whole.
    pending: usize,
}

enum After {
    Goes,
    Ended,
}

impl<'l> Connections<'l> {
    fn new(listeners: &'l [(TcpListener, Kind)], counted: &'l Counted) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (place, (listener, _)) in listeners.iter().enumerate() {
            epoll.add(listener, wanted(place as u64))?;
        }
        Ok(Self {
            listeners,
            counted,
            epoll,
            open: BTreeMap::new(),
            next: listeners.len() as u64,
            buffer: vec![0; BUFFER],
        })
    }

    fn serve(mut self, end: &AtomicBool) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 128];
        let look = EpollTimeout::try_from(LOOK).unwrap_or(EpollTimeout::ZERO);
        while !end.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(&mut events, look) {
                Err(nix::errno::Errno::EINTR) => continue,
                count => count?,
            };
            for event in &events[..count] {
                self.go_on_with(event.data())?;
            }
        }
        Ok(())
    }

    fn go_on_with(&mut self, token: u64) -> io::Result<()> {
        let listener = usize::try_from(token)
            .ok()
            .and_then(|place| self.listeners.get(place));
        if let Some((listener, kind)) = listener {
            return self.accept(listener, *kind);
        }
        if let Some(open) = self.open.get_mut(&token) {
            match open.go_on(&mut self.buffer, self.counted) {
                Ok(After::Goes) => {}
                // What a client does to its connection is its own business.
                Ok(After::Ended) | Err(_) => {
                    self.open.remove(&token);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: &TcpListener, kind: Kind) -> io::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE {
            // Taken by the other thread, or gone again; out of files: others end first.
            let Ok((stream, _)) = listener.accept() else {
                return Ok(());
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.epoll.add(&stream, wanted(self.next))?;
            let open = Open {
                stream,
                kind,
                pending: 0,
            };
            self.open.insert(self.next, open);
            self.next += 1;
        }
        Ok(())
    }
}

impl Open {
    fn go_on(&mut self, buffer: &mut [u8], counted: &Counted) -> io::Result<After> {
        let length = match self.stream.read(buffer) {
            Ok(0) => return Ok(After::Ended),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(After::Goes),
            Err(error) => return Err(error),
        };
        match self.kind {
            Kind::Bulk => {
                counted.bytes.fetch_add(length as u64, Ordering::Relaxed);
                Ok(After::Goes)
            }
            // The server closes first, so that it is the one who keeps TIME_WAIT: clients, and
            // proxies towards it, have their ports again at once.
            Kind::Once => self.stream.write_all(&buffer[..1]).map(|()| After::Ended),
            Kind::Requests => {
                self.pending += length;
                while self.pending >= REQUEST.len() {
                    self.pending -= REQUEST.len();
                    self.stream.write_all(RESPONSE)?;
                }
                Ok(After::Goes)
            }
        }
    }
}

fn wanted(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, token)
}

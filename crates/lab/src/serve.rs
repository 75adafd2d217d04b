//! Servers in this process whose sockets live in a pod.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use crate::answering_socket::AnsweringSocket;
use crate::namespace::Namespace;
use crate::traffic::serve_pattern;

/// How often a UDP server looks whether it shall end.
const UDP_LOOK: Duration = Duration::from_millis(50);
/// How many connections may wait to be accepted (`net.core.somaxconn` allows no more).
const BACKLOG: i32 = 4096;

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// TCP: sends back whatever comes, until the client ends its half.
    Echo,
    /// TCP: first the line `POD saw CLIENT-ADDRESS:PORT`, then as [`Self::Echo`].
    Identity,
    /// TCP: reads until the client ends its half, then answers `N bytes\n`. Proof that a
    /// half-closed connection still carries the other direction.
    CountBytes,
    /// TCP: sends this many bytes at once, reads nothing, and ends.
    Send(usize),
    /// TCP: reads one byte, then resets the connection.
    Reset,
    /// TCP: sends or checks as many bytes as it is asked for, each of which follows from a
    /// seed; for [`crate::Traffic::download`] and [`crate::Traffic::upload`].
    Pattern,
    /// UDP: sends each datagram back.
    UdpEcho,
    /// UDP: answers each datagram with the line `POD saw CLIENT-ADDRESS:PORT`, followed by
    /// the datagram.
    UdpIdentity,
}

/// A running server. Dropping it ends it; TCP connections it has accepted go on until
/// their client ends them, or [`Server::cut_connections`].
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pod: String,
    kind: Serve,
    over: AtomicBool,
    requests: AtomicUsize,
    connections: Mutex<Vec<TcpStream>>,
}

impl Server {
    pub(crate) fn start(
        namespace: &Namespace,
        addresses: &[SocketAddr],
        kind: Serve,
    ) -> Result<Self> {
        let mut server = Self {
            shared: Arc::new(Shared {
                pod: namespace.name().to_owned(),
                kind,
                over: AtomicBool::new(false),
                requests: AtomicUsize::new(0),
                connections: Mutex::new(Vec::new()),
            }),
            listeners: Vec::new(),
            threads: Vec::new(),
        };
        for address in addresses {
            server
                .listen(namespace, *address)
                .with_context(|| format!("cannot serve {address} in {}", namespace.name()))?;
        }
        Ok(server)
    }

    /// How many connections (TCP) or datagrams (UDP) have arrived.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Ends all TCP connections accepted so far, as when their process is killed.
    pub fn cut_connections(&self) {
        for stream in self.shared.open_connections().drain(..) {
            // One that is over already needs no end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn listen(&mut self, namespace: &Namespace, address: SocketAddr) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let work: Box<dyn FnOnce() + Send> = match shared.kind {
            Serve::UdpEcho | Serve::UdpIdentity => {
                let socket = namespace.run(|| AnsweringSocket::bind(address, UDP_LOOK))??;
                Box::new(move || shared.answer_datagrams(&socket))
            }
            Serve::Echo
            | Serve::Identity
            | Serve::CountBytes
            | Serve::Send(_)
            | Serve::Reset
            | Serve::Pattern => {
                let listener = namespace.run(|| TcpListener::bind(address))??;
                // The standard library's 128 drops SYNs of a thousand clients at once.
                SockRef::from(&listener).listen(BACKLOG)?;
                self.listeners.push(listener.try_clone()?);
                Box::new(move || shared.accept(&listener))
            }
        };
        self.threads.push(thread::Builder::new().spawn(work)?);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // On Linux this wakes the thread that waits in accept.
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn open_connections(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((stream, client)) = listener.accept() {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Ok(copy) = stream.try_clone() {
                self.open_connections().push(copy);
            }
            let shared = Arc::clone(&self);
            // A connection that can't be served is closed, which the client notices.
            let _ = thread::Builder::new().spawn(move || {
                let _ = shared.converse(&stream, client);
                shared.forget(&stream);
            });
        }
    }

    /// Drops the copy kept for [`Server::cut_connections`], lest the connection stay open.
    fn forget(&self, stream: &TcpStream) {
        let peer = stream.peer_addr().ok();
        self.open_connections()
            .retain(|kept| peer.is_some() && kept.peer_addr().ok() != peer);
    }

    fn converse(&self, mut stream: &TcpStream, client: SocketAddr) -> io::Result<()> {
        match self.kind {
            Serve::Echo => echo(stream),
            Serve::Identity => {
                stream.write_all(self.greeting(client).as_bytes())?;
                echo(stream)
            }
            Serve::CountBytes => {
                let count = io::copy(&mut stream, &mut io::sink())?;
                stream.write_all(format!("{count} bytes\n").as_bytes())
            }
            Serve::Send(count) => {
                let bytes = u64::try_from(count).map_err(io::Error::other)?;
                io::copy(&mut io::repeat(b'x').take(bytes), &mut stream)?;
                stream.shutdown(Shutdown::Write)
            }
            Serve::Reset => {
                stream.read_exact(&mut [0])?;
                SockRef::from(stream).set_linger(Some(Duration::ZERO))
            }
            Serve::Pattern => serve_pattern(stream),
            Serve::UdpEcho | Serve::UdpIdentity => Ok(()),
        }
    }

    fn answer_datagrams(&self, socket: &AnsweringSocket) {
        let mut buffer = vec![0; 65536];
        while !self.over.load(Ordering::Relaxed) {
            // Time-outs are the looks at `over`; other errors belong to datagrams long sent.
            let Ok((length, client, asked_at)) = socket.receive(&mut buffer) else {
                continue;
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            let mut answer = match self.kind {
                Serve::UdpIdentity => self.greeting(client).into_bytes(),
                Serve::UdpEcho
                | Serve::Echo
                | Serve::Identity
                | Serve::CountBytes
                | Serve::Send(_)
                | Serve::Reset
                | Serve::Pattern => Vec::new(),
            };
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.answer(&answer, client, asked_at);
        }
    }

    fn greeting(&self, client: SocketAddr) -> String {
        // A socket for both families writes IPv4 addresses in IPv6's way.
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        format!("{} saw {client}\n", self.pod)
    }
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16384];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..length])?;
    }
}

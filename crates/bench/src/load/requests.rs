//! Requests over connections that stay, each sent when the answer before it has come: as
//! HTTP/1.1 with keep-alive.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::Namespace;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Meter, PATIENCE, Until, Usage, connect};
use crate::histogram::Histogram;
use crate::processes::Processes;

/// A request. Servers and clients count its bytes, and read nothing.
pub const REQUEST: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: web.default.svc\r\n\
                             User-Agent: bench\r\nAccept: */*\r\n\r\n";
/// Its answer.
pub const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
                              Content-Length: 64\r\nConnection: keep-alive\r\n\r\n\
                              0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// What came of them.
#[derive(Debug, Clone)]
pub struct Answered {
    /// From request to answer.
    pub took: Histogram,
    /// How long all took.
    pub time: Duration,
    /// What they cost.
    pub usage: Usage,
}

impl Answered {
    /// Requests per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.took.count() as f64 / self.time.as_secs_f64()
    }

    /// Microseconds of the contender's processor time for each.
    #[must_use]
    pub fn microseconds_each(&self) -> Option<f64> {
        self.usage.microseconds_each(self.took.count())
    }
}

/// How many connections, by how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Connections of all threads.
    pub connections: usize,
    /// Threads.
    pub threads: usize,
}

/// Sends requests.
///
/// # Errors
///
/// When a connection can't be made or breaks, or an answer does not come.
pub fn run(
    client: &Namespace,
    to: SocketAddr,
    crowd: Crowd,
    until: Until,
    processes: &Processes,
) -> Result<Answered> {
    let all = client.run(|| -> Result<_> {
        let mut shares = open(to, crowd)?;
        let (begun, meter) = (AtomicU64::new(0), Meter::start(processes)?);
        let outcomes: Vec<Result<Histogram>> = thread::scope(|scope| {
            let workers: Vec<_> = shares
                .iter_mut()
                .map(|share| scope.spawn(|| work(share, until, &begun)))
                .collect();
            let outcome = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|_| bail!("a client panicked"))
            };
            workers.into_iter().map(outcome).collect()
        });
        Ok((outcomes, meter.stop()?))
    })?;
    let (outcomes, (usage, time)) = all?;
    let mut took = Histogram::default();
    for outcome in outcomes {
        took.merge(&outcome.with_context(|| format!("requests to {to}"))?);
    }
    Ok(Answered { took, time, usage })
}

/// One request over a fresh connection, which is returned.
///
/// # Errors
///
/// When it can't be made or no answer comes.
pub fn first(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(to).with_context(|| format!("no connection to {to}"))?;
    stream.write_all(REQUEST)?;
    stream.read_exact(&mut vec![0; RESPONSE.len()])?;
    Ok(stream)
}

struct Asking {
    stream: TcpStream,
    asked: Instant,
    received: usize,
}

/// A share of connections for each thread, every one of which was answered once.
fn open(to: SocketAddr, crowd: Crowd) -> Result<Vec<Vec<Asking>>> {
    ensure!(
        crowd.threads > 0 && crowd.connections >= crowd.threads,
        "each thread needs a connection"
    );
    let mut shares: Vec<Vec<Asking>> = (0..crowd.threads).map(|_| Vec::new()).collect();
    for number in 0..crowd.connections {
        let stream = first(to)?;
        stream.set_nonblocking(true)?;
        shares[number % crowd.threads].push(Asking {
            stream,
            asked: Instant::now(),
            received: 0,
        });
    }
    Ok(shares)
}

fn work(share: &mut [Asking], until: Until, begun: &AtomicU64) -> Result<Histogram> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (place, asking) in share.iter().enumerate() {
        let wanted = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        epoll.add(&asking.stream, wanted)?;
    }
    let mut took = Histogram::default();
    let began = Instant::now();
    let mut waiting = 0_usize;
    let is_enough = || match until {
        Until::Over(time) => began.elapsed() >= time,
        Until::Done(count) => begun.fetch_add(1, Ordering::Relaxed) >= count,
    };
    for asking in share.iter_mut() {
        if !is_enough() {
            asking.ask()?;
            waiting += 1;
        }
    }
    let mut events = [EpollEvent::empty(); 64];
    let patience = EpollTimeout::try_from(PATIENCE).unwrap_or(EpollTimeout::ZERO);
    while waiting > 0 {
        let count = match epoll.wait(&mut events, patience) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        ensure!(count > 0, "no answer for {} s", PATIENCE.as_secs());
        for event in &events[..count] {
            let place = usize::try_from(event.data())?;
            if share[place].is_answered()? {
                took.add(share[place].asked.elapsed());
                if is_enough() {
                    waiting -= 1;
                } else {
                    share[place].ask()?;
                }
            }
        }
    }
    Ok(took)
}

impl Asking {
    fn ask(&mut self) -> Result<()> {
        self.asked = Instant::now();
        self.received = 0;
        // One request is always less than a socket takes.
        self.stream.write_all(REQUEST).context("cannot ask")
    }

    fn is_answered(&mut self) -> Result<bool> {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server, or who stands before it, closed"),
            Ok(length) => self.received += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the connection broke"),
        }
        ensure!(
            self.received <= RESPONSE.len(),
            "more came than was asked for"
        );
        Ok(self.received == RESPONSE.len())
    }
}

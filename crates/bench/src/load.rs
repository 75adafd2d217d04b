//! What is sent, and what answers it: servers and clients of this process, whose sockets
//! are in the namespaces of pods.
//!
//! Everything is as cheap as it can be had without `unsafe`, for what the two ends cost is
//! part of each figure, whoever stands between them.

pub mod bulk;
pub mod connections;
pub mod datagrams;
pub mod idle;
pub mod requests;
mod server;
mod together;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;

pub use server::{Counted, LoadServer};

use crate::processes::{Processes, busy_machine};

/// Where [`LoadServer`] takes bytes and counts them.
pub const BULK: u16 = 9001;
/// Where it answers one byte with one, and closes.
pub const ONCE: u16 = 9002;
/// Where it answers requests for as long as the client likes.
pub const REQUESTS: u16 = 9003;
/// Where it takes datagrams (UDP).
pub const DATAGRAMS: u16 = 9004;
/// Its TCP ports.
pub const TCP_PORTS: [u16; 3] = [BULK, ONCE, REQUESTS];

/// How long a client waits for a connection, or for the next bytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// When a client has done enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When this time is over.
    Over(Duration),
    /// When it has done this many, in all of its threads.
    Done(u64),
}

/// Processor time that was used while something went on, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// By the contender's processes, if it has any.
    pub processes: Option<f64>,
    /// By everything on this machine: the clients and servers of the suite, and others too.
    pub machine: f64,
}

impl Usage {
    /// Microseconds of the contender's processor time for each of `count`.
    #[must_use]
    pub fn microseconds_each(&self, count: u64) -> Option<f64> {
        Some(self.processes? * 1e6 / count as f64)
    }
}

/// Measures [`Usage`].
#[derive(Debug)]
pub struct Meter {
    processes: Processes,
    before: Usage,
    began: Instant,
}

impl Meter {
    /// Begins.
    ///
    /// # Errors
    ///
    /// When a process has ended, or the kernel does not tell.
    pub fn start(processes: &Processes) -> Result<Self> {
        Ok(Self {
            processes: processes.clone(),
            before: used(processes)?,
            began: Instant::now(),
        })
    }

    /// What was used since it began, and how long that is.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn stop(self) -> Result<(Usage, Duration)> {
        let took = self.began.elapsed();
        let after = used(&self.processes)?;
        let processes = after.processes.zip(self.before.processes);
        let usage = Usage {
            processes: processes.map(|(after, before)| after - before),
            machine: after.machine - self.before.machine,
        };
        Ok((usage, took))
    }
}

fn used(processes: &Processes) -> Result<Usage> {
    let own = if processes.is_empty() {
        None
    } else {
        Some(processes.processor_time()?.as_secs_f64())
    };
    Ok(Usage {
        processes: own,
        machine: busy_machine()?,
    })
}

/// Lets time pass.
#[expect(
    clippy::disallowed_methods,
    reason = "to let something go on for a while is what a measurement is"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

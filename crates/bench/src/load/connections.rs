//! Connections, one after the other in each thread: connect, a byte there, a byte back, end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgemesh_lab::Namespace;

use super::together::together;
use super::{Meter, PATIENCE, Until, Usage, connect};
use crate::histogram::Histogram;
use crate::processes::Processes;

/// What came of them.
#[derive(Debug, Clone)]
pub struct Made {
    /// How long each one took that was answered, from connect to the end.
    pub took: Histogram,
    /// How many were not answered.
    pub failed: u64,
    /// How long all took.
    pub time: Duration,
    /// What they cost.
    pub usage: Usage,
}

impl Made {
    /// Connections per second.
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

/// Makes connections by `threads` at once. Failures count and do not end it.
///
/// # Errors
///
/// When none is answered: the first failure.
pub fn run(
    client: &Namespace,
    to: SocketAddr,
    threads: usize,
    until: Until,
    processes: &Processes,
) -> Result<Made> {
    let meter = Meter::start(processes)?;
    let begun = AtomicU64::new(0);
    let outcomes = together(client, threads, || work(to, until, &begun))?;
    let (usage, time) = meter.stop()?;
    let mut made = Made {
        took: Histogram::default(),
        failed: 0,
        time,
        usage,
    };
    let mut failure = None;
    for outcome in outcomes {
        made.took.merge(&outcome.took);
        made.failed += outcome.failed;
        failure = failure.or(outcome.failure);
    }
    if made.took.count() == 0 {
        let failure = failure.context("no thread made a connection")?;
        bail!("none of {} connections to {to}: {failure}", made.failed);
    }
    Ok(made)
}

/// One connection to a server at [`super::ONCE`]: returns when it has ended.
///
/// # Errors
///
/// The kernel's.
pub fn once(to: SocketAddr) -> io::Result<()> {
    exchange(connect(to)?)
}

/// As [`once`], but the connection has to be there within this time.
///
/// # Errors
///
/// The kernel's.
pub fn once_within(to: SocketAddr, limit: Duration) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream)
}

fn exchange(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [b'?'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    // The server closes; a proxy that forgets to pass that on is to be seen.
    match stream.read(&mut byte)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than a byte came back")),
    }
}

#[derive(Default)]
struct Outcome {
    took: Histogram,
    failed: u64,
    failure: Option<io::Error>,
}

fn work(to: SocketAddr, until: Until, begun: &AtomicU64) -> Outcome {
    let mut outcome = Outcome::default();
    let first = Instant::now();
    loop {
        let enough = match until {
            Until::Over(time) => first.elapsed() >= time,
            Until::Done(count) => begun.fetch_add(1, Ordering::Relaxed) >= count,
        };
        if enough {
            return outcome;
        }
        let began = Instant::now();
        match once(to) {
            Ok(()) => outcome.took.add(began.elapsed()),
            Err(failure) => {
                outcome.failed += 1;
                outcome.failure.get_or_insert(failure);
            }
        }
    }
}

//! Many connections, each with bytes of its own.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::latencies::Latencies;
use super::pattern::Pattern;
use crate::client::Place;

/// How long one step of a connection may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Threads that carry one connection each need little.
const STACK: usize = 256 * 1024;
const PIECE: usize = 8 * 1024;

/// What became of a number of connections.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    /// How many came to their end with every byte in place.
    pub intact: usize,
    /// What went wrong with the others, one line each.
    pub failures: Vec<String>,
    /// How long opening each took.
    pub connected: Latencies,
    /// How long each took from before it was opened to its end.
    pub took: Latencies,
}

impl Connections {
    /// Checks that none failed.
    ///
    /// # Errors
    ///
    /// When one did: how many, and the first few of them.
    pub fn check_all_intact(&self) -> Result<()> {
        ensure!(self.failures.is_empty(), "{self}");
        Ok(())
    }

    fn sum_up(outcomes: Vec<Result<Times>>) -> Self {
        let mut sum = Self::default();
        let mut times = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(time) => times.push(time),
                Err(error) => sum.failures.push(format!("{error:#}")),
            }
        }
        sum.intact = times.len();
        sum.connected = times.iter().map(|time| time.connected).collect();
        sum.took = times.iter().map(|time| time.took).collect();
        sum
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, all) = (self.failures.len(), self.failures.len() + self.intact);
        write!(
            formatter,
            "{failed} of {all} connections failed; to connect: {}",
            self.connected
        )?;
        for failure in self.failures.iter().take(5) {
            write!(formatter, "\n{failure}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Times {
    connected: Duration,
    took: Duration,
}

pub(super) fn at_once(
    place: &impl Place,
    to: SocketAddr,
    count: usize,
    bytes: usize,
) -> Result<Connections> {
    let all_open = Barrier::new(count);
    let work = |number: u64| {
        let opened = open(to);
        all_open.wait();
        opened.and_then(|connection| connection.carry(number, bytes))
    };
    in_threads(place, count, |number| vec![work(number)])
}

pub(super) fn in_turn(
    place: &impl Place,
    to: SocketAddr,
    count: u64,
    workers: usize,
    bytes: usize,
) -> Result<Connections> {
    let begun = AtomicU64::new(0);
    in_threads(place, workers, |_| {
        let mut outcomes = Vec::new();
        loop {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return outcomes;
            }
            outcomes.push(open(to).and_then(|connection| connection.carry(number, bytes)));
        }
    })
}

fn in_threads(
    place: &impl Place,
    threads: usize,
    work: impl Fn(u64) -> Vec<Result<Times>> + Sync,
) -> Result<Connections> {
    let numbers = 0..u64::try_from(threads)?;
    // Threads started inside the namespace are inside it.
    let outcomes = place.namespace().run(|| {
        thread::scope(|scope| -> Result<Vec<Result<Times>>> {
            let mut running = Vec::new();
            for number in numbers {
                let builder = thread::Builder::new().stack_size(STACK);
                let work = &work;
                let started = builder.spawn_scoped(scope, move || work(number));
                running.push(started.context("cannot start a thread")?);
            }
            let mut outcomes = Vec::new();
            for thread in running {
                outcomes.extend(thread.join().map_err(|_| anyhow!("a client panicked"))?);
            }
            Ok(outcomes)
        })
    })??;
    Ok(Connections::sum_up(outcomes))
}

struct Open {
    stream: TcpStream,
    begin: Instant,
    connected: Duration,
}

fn open(to: SocketAddr) -> Result<Open> {
    let begin = Instant::now();
    let stream = TcpStream::connect_timeout(&to, PATIENCE)
        .with_context(|| format!("no connection after {:.1?}", begin.elapsed()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Open {
        stream,
        begin,
        connected: begin.elapsed(),
    })
}

impl Open {
    /// Piece by piece, so that one thread can do both directions.
    fn carry(mut self, seed: u64, bytes: usize) -> Result<Times> {
        let mut pattern = Pattern::new(seed);
        let mut place = 0;
        while place < bytes {
            let mut sent = vec![0; PIECE.min(bytes - place)];
            pattern.fill(&mut sent);
            let mut heard = vec![0; sent.len()];
            self.stream
                .write_all(&sent)
                .and_then(|()| self.stream.read_exact(&mut heard))
                .with_context(|| format!("connection {seed}, after {place} bytes"))?;
            ensure!(
                heard == sent,
                "connection {seed}: what came back of bytes {place} and following is wrong"
            );
            place += sent.len();
        }
        self.stream.shutdown(Shutdown::Write)?;
        let further = self.stream.read(&mut [0])?;
        ensure!(
            further == 0,
            "connection {seed}: more came back than was sent"
        );
        Ok(Times {
            connected: self.connected,
            took: self.begin.elapsed(),
        })
    }
}

//! One connection that is held through whatever happens.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::await_until::await_until;
use crate::client::Place;

/// A TCP connection to a [`crate::Serve::Echo`] server over which a number goes now and
/// again, and comes back. It has no time-outs of its own. Dropping it closes it.
#[derive(Debug)]
pub struct HeldConnection {
    stream: TcpStream,
    shared: Arc<Mutex<State>>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// How a [`HeldConnection`] is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldReport {
    /// How many numbers came back.
    pub echoed: u64,
    /// The longest time in which none came back, up to now.
    pub longest_stall: Duration,
    /// How it broke, if it did.
    pub broken: Option<String>,
}

impl HeldReport {
    /// Checks that it is not broken.
    ///
    /// # Errors
    ///
    /// When it is: says how.
    pub fn check_whole(&self) -> Result<()> {
        ensure!(self.broken.is_none(), "{self}");
        Ok(())
    }
}

impl fmt::Display for HeldReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            echoed,
            longest_stall,
            broken,
        } = self;
        write!(
            formatter,
            "{echoed} echoes, longest stall {longest_stall:.1?}"
        )?;
        match broken {
            Some(how) => write!(formatter, "; then it broke: {how}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct State {
    echoed: u64,
    last: Instant,
    longest: Duration,
    broken: Option<String>,
}

impl HeldConnection {
    pub(super) fn open(place: &impl Place, to: SocketAddr, every: Duration) -> Result<Self> {
        let stream = place.connect(to).with_context(|| {
            let from = place.namespace().name();
            format!("no TCP connection from {from} to {to}")
        })?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        stream.set_nodelay(true)?;
        let (stop, stopped) = mpsc::channel();
        let mut held = Self {
            shared: Arc::new(Mutex::new(State {
                echoed: 0,
                last: Instant::now(),
                longest: Duration::ZERO,
                broken: None,
            })),
            stop: Some(stop),
            threads: Vec::new(),
            stream,
        };
        held.start(move |stream, shared| send(stream, shared, &stopped, every))?;
        held.start(receive)?;
        Ok(held)
    }

    /// How it is doing.
    #[must_use]
    pub fn report(&self) -> HeldReport {
        let state = lock(&self.shared);
        let stall_now = match state.broken {
            Some(_) => Duration::ZERO,
            None => state.last.elapsed(),
        };
        HeldReport {
            echoed: state.echoed,
            longest_stall: state.longest.max(stall_now),
            broken: state.broken.clone(),
        }
    }

    /// Forgets the stalls before now, so that the next report tells of what comes.
    pub fn forget_stalls(&self) {
        let mut state = lock(&self.shared);
        state.longest = Duration::ZERO;
        state.last = Instant::now();
    }

    /// Waits until further numbers have come back, and returns how it is doing.
    ///
    /// # Errors
    ///
    /// When none has within `limit`, or the connection broke.
    pub fn await_echo(&self, limit: Duration) -> Result<HeldReport> {
        let before = self.report().echoed;
        // Of two, the second was sent after this was called.
        let waited = await_until(limit, "the held connection goes on", || {
            let report = self.report();
            report.echoed >= before + 2 || report.broken.is_some()
        });
        let report = self.report();
        waited.with_context(|| report.to_string())?;
        report.check_whole()?;
        Ok(report)
    }

    /// Closes it, and returns how it was doing.
    #[must_use]
    pub fn close(self) -> HeldReport {
        self.report()
    }

    fn start(
        &mut self,
        work: impl FnOnce(&TcpStream, &Mutex<State>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let stream = self.stream.try_clone().context("cannot share a socket")?;
        let shared = Arc::clone(&self.shared);
        let work = move || {
            if let Err(error) = work(&stream, &shared) {
                lock(&shared).broken.get_or_insert(format!("{error:#}"));
            }
        };
        let thread = thread::Builder::new().name("held".to_owned()).spawn(work);
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Wakes both threads; one that is closed already is fine.
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(
    mut stream: &TcpStream,
    shared: &Mutex<State>,
    stopped: &Receiver<()>,
    every: Duration,
) -> Result<()> {
    let mut number: u64 = 0;
    while lock(shared).broken.is_none() {
        stream.write_all(&number.to_be_bytes()).context("sending")?;
        number += 1;
        if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, shared: &Mutex<State>) -> Result<()> {
    let mut number: u64 = 0;
    loop {
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).context("receiving")?;
        let heard = u64::from_be_bytes(heard);
        ensure!(
            heard == number,
            "number {heard} came back instead of {number}"
        );
        number += 1;
        let mut state = lock(shared);
        state.longest = state.longest.max(state.last.elapsed());
        state.last = Instant::now();
        state.echoed = number;
    }
}

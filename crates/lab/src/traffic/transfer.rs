//! One TCP connection that carries many bytes, each of which is checked.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::pattern::{INTACT, Pattern, Task};
use crate::client::Place;

/// How long nothing at all may come before a transfer counts as broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A transfer that arrived whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// How many bytes.
    pub bytes: u64,
    /// How long opening the connection took.
    pub connected: Duration,
    /// From before the connection was opened until the last byte was known to be right.
    pub took: Duration,
}

impl Transfer {
    /// Bits per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let milliseconds = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        self.bytes.saturating_mul(8_000) / milliseconds.max(1)
    }
}

pub(super) fn download(
    place: &impl Place,
    to: SocketAddr,
    seed: u64,
    bytes: u64,
) -> Result<Transfer> {
    let (begin, mut stream, connected) = open(place, to)?;
    let carry = || -> Result<()> {
        stream.write_all(Task::Send { seed, bytes }.to_line().as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        Pattern::new(seed).check_whole(&mut stream, bytes)
    };
    finish(carry, to, begin, connected, bytes)
}

pub(super) fn upload(
    place: &impl Place,
    to: SocketAddr,
    seed: u64,
    bytes: u64,
) -> Result<Transfer> {
    let (begin, mut stream, connected) = open(place, to)?;
    let carry = || -> Result<()> {
        stream.write_all(Task::Take { seed, bytes }.to_line().as_bytes())?;
        Pattern::new(seed).send(&mut stream, bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let mut verdict = String::new();
        stream.read_to_string(&mut verdict)?;
        ensure!(verdict == INTACT, "the server says: {verdict}");
        Ok(())
    };
    finish(carry, to, begin, connected, bytes)
}

pub(super) fn exchange(
    place: &impl Place,
    to: SocketAddr,
    seed: u64,
    bytes: u64,
) -> Result<Transfer> {
    let (begin, mut stream, connected) = open(place, to)?;
    let mut sending = stream.try_clone().context("cannot share a socket")?;
    let carry = || -> Result<()> {
        thread::scope(|scope| {
            let sender = thread::Builder::new().spawn_scoped(scope, || -> io::Result<()> {
                Pattern::new(seed).send(&mut sending, bytes)?;
                sending.shutdown(Shutdown::Write)
            })?;
            let checked = Pattern::new(seed).check_whole(&mut stream, bytes);
            if checked.is_err() {
                // Else the sender might wait for a reader for good.
                let _ = stream.shutdown(Shutdown::Both);
            }
            let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
            checked?;
            sent.context("while sending")
        })
    };
    finish(carry, to, begin, connected, bytes)
}

fn open(place: &impl Place, to: SocketAddr) -> Result<(Instant, TcpStream, Duration)> {
    let begin = Instant::now();
    let stream = place.connect(to).with_context(|| {
        let from = place.namespace().name();
        format!("no TCP connection from {from} to {to}")
    })?;
    let connected = begin.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok((begin, stream, connected))
}

fn finish(
    carry: impl FnOnce() -> Result<()>,
    to: SocketAddr,
    begin: Instant,
    connected: Duration,
    bytes: u64,
) -> Result<Transfer> {
    carry().with_context(|| format!("the connection to {to} did not carry {bytes} bytes"))?;
    Ok(Transfer {
        bytes,
        connected,
        took: begin.elapsed(),
    })
}

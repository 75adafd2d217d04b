//! As many bytes as go through, from the client to the server.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgemesh_lab::{Namespace, await_until};
use socket2::SockRef;

use super::{Counted, Meter, PATIENCE, Usage, connect, pause};
use crate::processes::Processes;

/// What is written at once.
const BUFFER: usize = 256 << 10;
/// How long streams have to go before they are measured, where there is no distance.
pub const WARM_UP: Duration = Duration::from_millis(200);
/// How often a writer that has to wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

/// What went through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moved {
    /// Bytes that the server received.
    pub bytes: u64,
    /// In this time.
    pub took: Duration,
    /// What it cost.
    pub usage: Usage,
}

impl Moved {
    /// Bits per second in millions.
    #[must_use]
    pub fn mbit(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.took.as_secs_f64()
    }

    /// Seconds of the contender's processor time for each 1e9 bytes.
    #[must_use]
    pub fn processes_per_gb(&self) -> Option<f64> {
        self.usage
            .processes
            .map(|seconds| seconds * 1e9 / self.bytes as f64)
    }

    /// As [`Self::processes_per_gb`], of the whole machine.
    #[must_use]
    pub fn machine_per_gb(&self) -> f64 {
        self.usage.machine * 1e9 / self.bytes as f64
    }
}

/// Sends over `streams` connections and counts what arrives for `window`, from `warm_up`
/// after the first bytes on.
///
/// # Errors
///
/// When a connection can't be made, or nothing arrives.
pub fn run(
    client: &Namespace,
    to: SocketAddr,
    streams: usize,
    [warm_up, window]: [Duration; 2],
    server: &Counted,
    processes: &Processes,
) -> Result<Moved> {
    let end = AtomicBool::new(false);
    client.run(|| {
        let open: io::Result<Vec<_>> = (0..streams).map(|_| connect(to)).collect();
        let open = open.with_context(|| format!("no connection to {to}"))?;
        thread::scope(|scope| {
            for stream in &open {
                scope.spawn(|| write_until(&end, stream));
            }
            let moved = watch(server, [warm_up, window], processes);
            end.store(true, Ordering::Relaxed);
            moved.with_context(|| format!("bytes to {to}"))
        })
    })?
}

/// Sends `bytes` over one connection and waits until all have arrived.
///
/// # Errors
///
/// When they don't.
pub fn send(client: &Namespace, to: SocketAddr, bytes: u64, server: &Counted) -> Result<()> {
    client.run(|| {
        let mut stream = connect(to).with_context(|| format!("no connection to {to}"))?;
        // Under an instruction counter all is a hundred times slower.
        stream.set_write_timeout(None)?;
        let goal = server.bytes() + bytes;
        let buffer = vec![0; BUFFER];
        let mut left = bytes;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            stream.write_all(&buffer[..part])?;
            left -= part as u64;
        }
        await_until(PATIENCE * 30, "all bytes have arrived", || {
            server.bytes() >= goal
        })?;
        Ok(())
    })?
}

fn watch(
    server: &Counted,
    [warm_up, window]: [Duration; 2],
    processes: &Processes,
) -> Result<Moved> {
    let before = server.bytes();
    await_until(PATIENCE, "the first bytes arrive", || {
        server.bytes() > before
    })?;
    pause(warm_up);
    let meter = Meter::start(processes)?;
    let (first, began) = (server.bytes(), Instant::now());
    pause(window);
    // On a busy machine nothing may have come for a moment.
    await_until(PATIENCE, "bytes go on arriving", || server.bytes() > first)?;
    let (bytes, took) = (server.bytes() - first, began.elapsed());
    let (usage, _) = meter.stop()?;
    Ok(Moved { bytes, took, usage })
}

/// Until the measurement is over; the connection is then reset, for nobody wants the rest.
fn write_until(end: &AtomicBool, stream: &TcpStream) {
    let buffer = vec![0; BUFFER];
    let (mut stream, socket) = (stream, SockRef::from(stream));
    // Both fail on a broken connection only, as does the write.
    let _ = stream.set_write_timeout(Some(LOOK));
    let _ = socket.set_linger(Some(Duration::ZERO));
    while !end.load(Ordering::Relaxed) {
        match stream.write(&buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            // What did not arrive was not counted.
            Err(_) => return,
        }
    }
}

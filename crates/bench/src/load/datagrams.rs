//! Datagrams: as many as go, and there and back.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::Namespace;

use super::together::together;
use super::{Counted, Meter, Usage, pause};
use crate::histogram::Histogram;
use crate::processes::Processes;

/// The first byte of a datagram that is to come back.
pub(super) const ECHO: u8 = b'e';
/// The first byte of one that is only counted.
const COUNT: u8 = b'c';
/// Bytes of a datagram: as a question to a DNS server, or a voice packet.
const SIZE: usize = 128;
/// How long an answer may take before it counts as lost.
const LOST: Duration = Duration::from_millis(500);
/// How long the last ones may be under way.
const SETTLE: Duration = Duration::from_millis(100);

/// What came of datagrams that were sent without waiting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flooded {
    /// Sent.
    pub sent: u64,
    /// Received by the server.
    pub received: u64,
    /// For how long was sent.
    pub time: Duration,
    /// What it cost.
    pub usage: Usage,
}

impl Flooded {
    /// Datagrams per second that arrived.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }

    /// Percentage that did not.
    #[must_use]
    pub fn lost(&self) -> f64 {
        100.0 * (1.0 - self.received as f64 / self.sent as f64).max(0.0)
    }
}

/// What came of datagrams there and back.
#[derive(Debug, Clone)]
pub struct Exchanged {
    /// From datagram to answer.
    pub took: Histogram,
    /// How many had none within half a second.
    pub lost: u64,
    /// How long all took.
    pub time: Duration,
    /// What it cost.
    pub usage: Usage,
}

impl Exchanged {
    /// Answers per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.took.count() as f64 / self.time.as_secs_f64()
    }

    /// Percentage without an answer.
    #[must_use]
    pub fn lost(&self) -> f64 {
        let all = self.took.count() + self.lost;
        100.0 * self.lost as f64 / all as f64
    }
}

/// Sends from `flows` sockets as fast as they take it.
///
/// # Errors
///
/// When a socket can't be made, or nothing arrives.
pub fn flood(
    client: &Namespace,
    to: SocketAddr,
    flows: usize,
    time: Duration,
    server: &Counted,
    processes: &Processes,
) -> Result<Flooded> {
    let before = server.datagrams();
    let meter = Meter::start(processes)?;
    let sent = together(client, flows, || send_for(to, time))?;
    let (usage, took) = meter.stop()?;
    pause(SETTLE);
    let mut all = 0;
    for flow in sent {
        all += flow.with_context(|| format!("datagrams to {to}"))?;
    }
    let received = server.datagrams() - before;
    ensure!(received > 0, "none of {all} datagrams to {to} arrived");
    Ok(Flooded {
        sent: all,
        received,
        time: took,
        usage,
    })
}

/// Sends from `flows` sockets, one datagram each until it has come back or is lost.
///
/// # Errors
///
/// When a socket can't be made, or nothing comes back.
pub fn exchange(
    client: &Namespace,
    to: SocketAddr,
    flows: usize,
    time: Duration,
    processes: &Processes,
) -> Result<Exchanged> {
    let meter = Meter::start(processes)?;
    let outcomes = together(client, flows, || ask_for(to, time))?;
    let (usage, time) = meter.stop()?;
    let (mut took, mut lost) = (Histogram::default(), 0);
    for outcome in outcomes {
        let (flow, unanswered) = outcome.with_context(|| format!("datagrams to {to}"))?;
        took.merge(&flow);
        lost += unanswered;
    }
    ensure!(
        took.count() > 0,
        "none of {lost} datagrams to {to} came back"
    );
    Ok(Exchanged {
        took,
        lost,
        time,
        usage,
    })
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

fn send_for(to: SocketAddr, time: Duration) -> Result<u64> {
    let (socket, datagram) = (socket(to)?, [COUNT; SIZE]);
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        for _ in 0..32 {
            match socket.send(&datagram) {
                // A refusal is of one that was sent before.
                Ok(_) => sent += 1,
                Err(error) if is_loss(error.kind()) => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
    }
    Ok(sent)
}

fn ask_for(to: SocketAddr, time: Duration) -> Result<(Histogram, u64)> {
    let (socket, mut datagram) = (socket(to)?, [ECHO; SIZE]);
    let (mut took, mut lost, mut number) = (Histogram::default(), 0, 0_u64);
    let began = Instant::now();
    while began.elapsed() < time {
        number += 1;
        datagram[8..16].copy_from_slice(&number.to_be_bytes());
        let asked = Instant::now();
        if socket.send(&datagram).is_ok() && is_answered(&socket, &datagram)? {
            took.add(asked.elapsed());
        } else {
            lost += 1;
        }
    }
    Ok((took, lost))
}

/// Late answers to those before it don't count.
fn is_answered(socket: &UdpSocket, datagram: &[u8]) -> Result<bool> {
    let mut answer = [0; SIZE];
    loop {
        match socket.recv(&mut answer) {
            Ok(length) if answer[..length] == *datagram => return Ok(true),
            Ok(_) => {}
            Err(error) if is_loss(error.kind()) => return Ok(false),
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
}

fn is_loss(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
    )
}

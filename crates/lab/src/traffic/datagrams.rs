//! Datagrams to a server that sends them back.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use socket2::SockRef;

use super::datagram_ledger::{DatagramReport, Ledger};
use crate::client::Place;

/// How long an answer may take before its datagram counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long nothing is sent or answered until the rest of a burst counts as lost: whoever asks
/// then who has counted it relies on it that nothing comes any more, on a busy machine, too.
const SILENCE: Duration = Duration::from_secs(3);

/// No two clients of a process have the same number, whoever made them.
static CLIENTS: AtomicU64 = AtomicU64::new(0);

pub(super) fn each_size(
    place: &impl Place,
    to: SocketAddr,
    sizes: impl IntoIterator<Item = usize>,
) -> Result<DatagramReport> {
    let client = Client::new(place, to)?;
    for size in sizes {
        let sent = client.send(size)?;
        client.await_answers(|ledger| ledger.unanswered() == 0 || sent.elapsed() >= PATIENCE)?;
    }
    Ok(DatagramReport::sum_up(vec![client.close()]))
}

/// Datagrams that are sent as fast as they can be; [`Traffic::burst`] sends them.
///
/// [`Traffic::burst`]: super::Traffic::burst
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// How many each client sends.
    pub count: usize,
    /// How many bytes each has.
    pub size: usize,
    /// How many clients, each with a socket of its own, send at the same time.
    pub clients: usize,
    /// How many of a client's may be unanswered at a time: what the sockets of both ends
    /// can't hold, the kernel drops on any path.
    pub window: usize,
}

pub(super) fn burst(place: &impl Place, to: SocketAddr, burst: Burst) -> Result<DatagramReport> {
    let clients: Vec<Client> = (0..burst.clients)
        .map(|_| Client::new(place, to))
        .collect::<Result<_>>()?;
    thread::scope(|scope| -> Result<()> {
        let mut running = Vec::new();
        for client in &clients {
            let started = [
                thread::Builder::new().spawn_scoped(scope, move || client.send_all(burst)),
                thread::Builder::new().spawn_scoped(scope, move || client.receive_all(burst)),
            ];
            for thread in started {
                running.push(thread.context("cannot start a thread")?);
            }
        }
        for thread in running {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    let reports = clients.into_iter().map(Client::close).collect();
    Ok(DatagramReport::sum_up(reports))
}

struct Client {
    socket: UdpSocket,
    begin: Instant,
    ledger: Mutex<Ledger>,
    answered: Condvar,
}

impl Client {
    fn new(place: &impl Place, to: SocketAddr) -> Result<Self> {
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let socket = place
            .udp_socket(to)
            .with_context(|| format!("no UDP socket in {} to {to}", place.namespace().name()))?;
        // As much as one gets; the kernel takes a wish for more as one for the most.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self {
            socket,
            begin: Instant::now(),
            ledger: Mutex::new(Ledger::new(number)),
            answered: Condvar::new(),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, size: usize) -> Result<Instant> {
        let datagram = self.ledger().next(size, self.begin.elapsed());
        match self.socket.send(&datagram) {
            Ok(_) => Ok(Instant::now()),
            // An ICMP answer to an earlier one: this one was not sent, and counts as lost.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Instant::now()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot send a datagram of {size} bytes"))
            }
        }
    }

    fn send_all(&self, burst: Burst) -> Result<()> {
        for _ in 0..burst.count {
            let ledger = self.ledger();
            let waited = self
                .answered
                .wait_timeout_while(ledger, PATIENCE, |ledger| {
                    ledger.unanswered() >= burst.window
                });
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.send(burst.size)?;
        }
        Ok(())
    }

    fn receive_all(&self, burst: Burst) -> Result<()> {
        let mut quiet_since = Instant::now();
        let mut known = 0;
        self.await_answers(|ledger| {
            let (sent, answered) = ledger.counts();
            if sent + answered != known {
                known = sent + answered;
                quiet_since = Instant::now();
            }
            answered == burst.count || quiet_since.elapsed() >= SILENCE
        })
    }

    /// Takes down what comes until `enough`.
    fn await_answers(&self, mut enough: impl FnMut(&Ledger) -> bool) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            if enough(&self.ledger()) {
                return Ok(());
            }
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    self.ledger()
                        .settle(&buffer[..length], self.begin.elapsed());
                    self.answered.notify_one();
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock
                            | ErrorKind::TimedOut
                            | ErrorKind::Interrupted
                            | ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(error).context("cannot receive datagrams"),
            }
        }
    }

    fn close(self) -> (DatagramReport, Vec<Duration>) {
        let ledger = self.ledger.into_inner();
        ledger.unwrap_or_else(PoisonError::into_inner).close()
    }
}

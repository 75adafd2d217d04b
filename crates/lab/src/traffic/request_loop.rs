//! Requests, one after another, while something happens.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::latencies::Latencies;
use crate::client::Place;
use crate::namespace::Namespace;
use crate::service::Protocol;

const TEXT: &str = "still there?";

/// Asks a server again and again, each time over a fresh socket, until it is stopped or
/// dropped.
#[derive(Debug)]
pub struct RequestLoop {
    begin: Instant,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// One request of a [`RequestLoop`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it began, counted from the beginning of the loop.
    pub begun: Duration,
    /// How long it took, successful or not.
    pub took: Duration,
    /// What went wrong; `None` for one that was answered.
    pub failure: Option<String>,
}

impl Request {
    /// When it was over, counted from the beginning of the loop.
    #[must_use]
    pub fn ended(&self) -> Duration {
        self.begun + self.took
    }
}

impl RequestLoop {
    pub(super) fn start(
        place: &impl Place,
        protocol: Protocol,
        to: SocketAddr,
        (pause, patience): (Duration, Duration),
    ) -> Result<Self> {
        let asker = Asker {
            namespace: place.namespace().clone(),
            protocol,
            to,
            pause,
            patience,
        };
        let (begin, log) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let (stop, stopped) = mpsc::channel();
        let written = Arc::clone(&log);
        let work = move || {
            let namespace = asker.namespace.clone();
            namespace.run(move || {
                let over = |pause| stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
                loop {
                    let request = asker.request(begin);
                    written
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(request);
                    if over(asker.pause) {
                        return;
                    }
                }
            })
        };
        let thread = thread::Builder::new()
            .name("requests".to_owned())
            .spawn(work);
        Ok(Self {
            begin,
            log,
            stop: Some(stop),
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// How long it has been running: the clock of its log.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// All requests so far.
    #[must_use]
    pub fn log(&self) -> RequestLog {
        RequestLog {
            requests: self.requests().clone(),
        }
    }

    /// Ends the loop and returns its log.
    ///
    /// # Errors
    ///
    /// When the place could not be entered.
    pub fn stop(mut self) -> Result<RequestLog> {
        self.end()?;
        Ok(self.log())
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(outcome)) => outcome,
            None => Ok(()),
        }
    }
}

impl Drop for RequestLoop {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The requests of a [`RequestLoop`], in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestLog {
    /// The requests.
    pub requests: Vec<Request>,
}

impl RequestLog {
    /// Those that were over at `moment` (of the loop's clock) or later.
    #[must_use]
    pub fn since(&self, moment: Duration) -> Self {
        let later = |request: &&Request| request.ended() >= moment;
        Self {
            requests: self.requests.iter().filter(later).cloned().collect(),
        }
    }

    /// How many were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answers().count()
    }

    /// How many were not.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.requests.len() - self.answered()
    }

    /// When the first one was answered, by the loop's clock.
    #[must_use]
    pub fn first_answer(&self) -> Option<Duration> {
        self.answers().map(Request::ended).next()
    }

    /// The longest time without an answer, from one to the next, or to the last request's
    /// end.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let end = self.requests.last().map(Request::ended);
        let marks: Vec<Duration> = self.answers().map(Request::ended).chain(end).collect();
        let gaps = marks.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// How long those that were answered took.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        self.answers().map(|request| request.took).collect()
    }

    fn answers(&self) -> impl Iterator<Item = &Request> {
        self.requests
            .iter()
            .filter(|request| request.failure.is_none())
    }
}

impl fmt::Display for RequestLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} answered, {} failed, longest gap {:.1?}; {}",
            self.answered(),
            self.failed(),
            self.longest_gap(),
            self.latencies()
        )?;
        let failures = self
            .requests
            .iter()
            .filter(|request| request.failure.is_some());
        for failed in failures.take(5) {
            let failure = failed.failure.as_deref().unwrap_or_default();
            write!(formatter, "\nat {:.1?}: {failure}", failed.begun)?;
        }
        Ok(())
    }
}

struct Asker {
    namespace: Namespace,
    protocol: Protocol,
    to: SocketAddr,
    pause: Duration,
    patience: Duration,
}

impl Asker {
    /// On a thread inside the namespace.
    fn request(&self, begin: Instant) -> Request {
        let begun = begin.elapsed();
        let outcome = match self.protocol {
            Protocol::Tcp => self.ask(),
            Protocol::Udp => self.ask_udp(),
        };
        Request {
            begun,
            took: begin.elapsed() - begun,
            failure: outcome.err().map(|error| format!("{error:#}")),
        }
    }

    fn ask(&self) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.to, self.patience).context("connect")?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.write_all(TEXT.as_bytes()).context("send")?;
        stream.shutdown(Shutdown::Write).context("half-close")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("receive")?;
        ensure!(answer.ends_with(TEXT), "it answered {answer:?}");
        Ok(())
    }

    fn ask_udp(&self) -> Result<()> {
        let any = if self.to.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(self.to)?;
        socket.set_read_timeout(Some(self.patience))?;
        socket.send(TEXT.as_bytes()).context("send")?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).context("receive")?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer.ends_with(TEXT), "it answered {answer:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(requests: &[(u64, u64, bool)]) -> RequestLog {
        let requests = requests.iter().map(|(begun, took, answered)| Request {
            begun: Duration::from_millis(*begun),
            took: Duration::from_millis(*took),
            failure: (!answered).then(|| "refused".to_owned()),
        });
        RequestLog {
            requests: requests.collect(),
        }
    }

    #[test]
    fn a_gap_is_the_time_without_answers_also_at_the_end() {
        let ms = Duration::from_millis;
        let within = log(&[(0, 1, true), (10, 5, false), (20, 30, true), (60, 1, true)]);
        assert_eq!(within.longest_gap(), ms(49));
        assert_eq!((within.answered(), within.failed()), (3, 1));
        assert_eq!(within.since(ms(40)).first_answer(), Some(ms(50)));
        let at_the_end = log(&[(0, 1, true), (10, 5, false), (20, 80, false)]);
        assert_eq!(at_the_end.longest_gap(), ms(99));
    }
}

//! Gets a client to one of its portal's endpoints.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use edgemesh_plan::{PortalEndpoint, Way};
use edgemesh_sockets::EndpointAddr;
use edgemesh_tunnel::FirstBytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use crate::addrs::ClientAddr;
use crate::chance::Chance;
use crate::descriptors::Descriptors;
use crate::dial_reports::DialReports;
use crate::metrics::Counters;
use crate::portal::{ActivePortal, Attempt};
use crate::reasons::{Blame, DialFault};

/// An endpoint that has not answered for this long is not waited for alone any more: the next
/// one is tried beside it (RFC 8305 section 8, "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);
/// Attempts of one connection under way at a time; bounds its file descriptors.
const MOST_AT_ONCE: usize = 4;
/// Faults of this host's own after which a connection is given up.
const LOCAL_FAULTS_TO_GIVE_UP: usize = 3;

/// What an attempt through the tunnel may take longer, so that the exit, which waits for the
/// endpoint as long as this node would, is heard: only it knows whose silence it is.
const TUNNEL_EXTRA: Duration = Duration::from_secs(1);

/// How long dialling may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DialLimits {
    /// One attempt.
    pub(crate) attempt: Duration,
    /// All attempts together.
    pub(crate) deadline: Duration,
}

/// A stream to an endpoint, and the attempts that were slower.
pub(crate) struct Dialled<S> {
    pub(crate) stream: S,
    pub(crate) endpoint: PortalEndpoint,
    pub(crate) stragglers: Stragglers<S>,
}

/// Attempts that were overtaken. Their outcome still tells whether their endpoint lives:
/// without waiting for it, a dead endpoint would cost every connection its head start.
pub(crate) struct Stragglers<S>(FuturesUnordered<Running<S>>);

impl<S> Stragglers<S> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until each has its outcome; none takes longer than an attempt may.
    pub(crate) async fn finish(mut self) {
        while self.0.next().await.is_some() {}
    }
}

/// No endpoint could be reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DialFailure {
    /// What was tried, in the order of the outcomes.
    pub(crate) tried: Vec<(SocketAddr, DialFault)>,
    /// Those still without an answer when time was up.
    pub(crate) unanswered: Vec<SocketAddr>,
    /// What the client had said may have reached the last one, so that no other may be tried.
    pub(crate) may_be_delivered: bool,
}

impl DialFailure {
    fn with(mut self, first: &FirstBytes) -> Self {
        self.may_be_delivered = first.may_be_delivered();
        self
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no endpoint could be reached:")?;
        for (endpoint, fault) in &self.tried {
            write!(f, " {endpoint} {}", fault.as_str())?;
        }
        for endpoint in &self.unanswered {
            write!(f, " {endpoint} unanswered")?;
        }
        if self.may_be_delivered {
            f.write_str("; it may have what the client said, so no other one was tried")?;
        }
        Ok(())
    }
}

type Running<S> = Pin<Box<dyn Future<Output = Outcome<S>> + Send>>;

struct Outcome<S> {
    endpoint: PortalEndpoint,
    result: Result<S, DialFault>,
}

/// What dialling works with, the same for all connections.
pub(crate) struct Dialler<'a> {
    pub(crate) limits: DialLimits,
    pub(crate) chance: &'a Chance,
    pub(crate) descriptors: &'a Descriptors,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) reports: &'a DialReports,
    /// What the client says meanwhile.
    pub(crate) first: &'a FirstBytes,
}

impl Dialler<'_> {
    /// Tries the portal's endpoints in the balancer's order until one answers: the next at
    /// once when one fails, and beside it when it takes long, unless that one has the client's
    /// first bytes.
    pub(crate) async fn dial<S, F>(
        &self,
        portal: &Arc<ActivePortal>,
        client: ClientAddr,
        connect: impl Fn(&PortalEndpoint) -> F,
    ) -> Result<Dialled<S>, DialFailure>
    where
        S: Send + 'static,
        F: Future<Output = Result<S, DialFault>> + Send + 'static,
    {
        let mut start_next_at = Instant::now();
        let deadline = start_next_at + self.limits.deadline;
        let mut race = Race::new(start_next_at);
        loop {
            let now = Instant::now();
            let is_due = now >= start_next_at && race.has_room();
            let is_held = is_due && !race.running.is_empty() && !self.first.withhold();
            if is_due && !is_held {
                match race.descriptor(self.descriptors) {
                    Some(own) => {
                        let random = self.chance.draw();
                        match portal.attempt(client, &race.started, now.into_std(), random) {
                            Some(attempt) => {
                                if attempt.is_trial() {
                                    // Its outcome is not waited for alone.
                                    self.first.withhold();
                                }
                                start_next_at = now + self.head_start(&attempt);
                                race.answer_due = now + self.patience(attempt.endpoint().way).0;
                                race.start(self.run(attempt, own, &connect)).await;
                            }
                            None => race.exhausted = true,
                        }
                    }
                    // Others have them all: perhaps later.
                    None => start_next_at = now + HEAD_START,
                }
            }
            let start_next = async {
                match is_held {
                    true => self.first.free().await,
                    false => sleep_until(start_next_at).await,
                }
            };
            let outcome = match race.outcome(start_next, deadline).await {
                Ok(outcome) => outcome,
                Err(lost) => return Err(lost.with(self.first)),
            };
            let Some(outcome) = outcome else {
                if let Some(late) = race.latest() {
                    portal.unanswered(EndpointAddr(late), race.answer_due.into_std());
                }
                continue;
            };
            match outcome.result {
                Ok(stream) => {
                    let address = EndpointAddr(outcome.endpoint.address);
                    portal.settled(client, address, Instant::now().into_std());
                    return Ok(Dialled {
                        stream,
                        endpoint: outcome.endpoint,
                        stragglers: Stragglers(race.running),
                    });
                }
                Err(fault) => {
                    race.fail(outcome.endpoint.address, fault);
                    if self.first.may_be_delivered() {
                        return Err(race.lost().with(self.first));
                    }
                    start_next_at = Instant::now();
                }
            }
        }
    }

    /// A client bound to its endpoint by affinity is not moved for being slow, as one lost
    /// packet makes it. And whether an endpoint that failed is back is no client's to wait for,
    /// so another is tried at the same time.
    fn head_start(&self, attempt: &Attempt) -> Duration {
        match (attempt.is_remembered(), attempt.is_trial()) {
            (true, false) => self.limits.attempt,
            (true, true) | (false, false) => HEAD_START,
            (false, true) => Duration::ZERO,
        }
    }

    /// How long an attempt by `way` may take, and what it means when it takes longer.
    fn patience(&self, way: Way) -> (Duration, DialFault) {
        match way {
            Way::Native => (self.limits.attempt, DialFault::TimedOut),
            Way::Tunnel => (self.limits.attempt + TUNNEL_EXTRA, DialFault::PeerDown),
        }
    }

    fn run<S, F>(
        &self,
        attempt: Attempt,
        own: Option<OwnedSemaphorePermit>,
        connect: impl Fn(&PortalEndpoint) -> F,
    ) -> (SocketAddr, Running<S>)
    where
        S: Send + 'static,
        F: Future<Output = Result<S, DialFault>> + Send + 'static,
    {
        let (within, silence) = self.patience(attempt.endpoint().way);
        let connecting = connect(attempt.endpoint());
        let counters = Arc::clone(self.counters);
        let reports = self.reports.clone();
        let address = attempt.endpoint().address;
        let running = Box::pin(async move {
            let _own = own;
            let endpoint = attempt.endpoint().clone();
            let mut connecting = pin!(connecting);
            let result = match soon(connecting.as_mut()).await {
                Some(result) => result,
                None => timeout(within, connecting).await.unwrap_or(Err(silence)),
            };
            match result {
                Ok(_) => attempt.succeeded(),
                Err(fault) => {
                    counters.dial_failed(fault);
                    reports.failed(&endpoint, fault);
                    attempt.failed(fault.blame(), Instant::now().into_std());
                }
            }
            Outcome { endpoint, result }
        });
        (address, running)
    }
}

/// The attempts of one connection.
struct Race<S> {
    running: FuturesUnordered<Running<S>>,
    started: Vec<SocketAddr>,
    /// When the one started last has an outcome at the latest.
    answer_due: Instant,
    failed: Vec<(SocketAddr, DialFault)>,
    /// Known already, and not yet looked at.
    news: Option<Outcome<S>>,
    /// Nothing is left to be started.
    exhausted: bool,
}

impl<S> Race<S> {
    fn new(now: Instant) -> Self {
        Self {
            running: FuturesUnordered::new(),
            started: Vec::new(),
            answer_due: now,
            failed: Vec::new(),
            news: None,
            exhausted: false,
        }
    }

    fn has_room(&self) -> bool {
        !self.exhausted && self.running.len() < MOST_AT_ONCE
    }

    /// What an attempt needs of a descriptor: the first one has its connection's, any beside
    /// it needs one of its own. None when there is none.
    fn descriptor(&self, descriptors: &Descriptors) -> Option<Option<OwnedSemaphorePermit>> {
        if self.running.is_empty() {
            return Some(None);
        }
        descriptors.for_attempt().map(Some)
    }

    async fn start(&mut self, (address, mut running): (SocketAddr, Running<S>)) {
        self.started.push(address);
        match soon(running.as_mut()).await {
            Some(outcome) => self.news = Some(outcome),
            None => self.running.push(running),
        }
    }

    /// The next outcome; none when the next attempt is due first.
    async fn outcome(
        &mut self,
        start_next: impl Future<Output = ()>,
        deadline: Instant,
    ) -> Result<Option<Outcome<S>>, DialFailure> {
        if let Some(outcome) = self.news.take() {
            return Ok(Some(outcome));
        }
        if self.running.is_empty() {
            return Err(self.lost());
        }
        let has_room = self.has_room();
        tokio::select! {
            biased;
            outcome = self.running.next() => Ok(outcome),
            () = start_next, if has_room => Ok(None),
            () = sleep_until(deadline) => Err(self.lost()),
        }
    }

    /// The one started last, while it has no outcome.
    fn latest(&self) -> Option<SocketAddr> {
        let latest = self.started.last().copied()?;
        (!self.has_answered(latest)).then_some(latest)
    }

    fn has_answered(&self, endpoint: SocketAddr) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == endpoint)
    }

    fn fail(&mut self, endpoint: SocketAddr, fault: DialFault) {
        self.failed.push((endpoint, fault));
        let local = self
            .failed
            .iter()
            .filter(|(_, fault)| fault.blame() == Blame::Host);
        // All others would meet the same shortage.
        self.exhausted |= local.count() >= LOCAL_FAULTS_TO_GIVE_UP;
    }

    fn lost(&mut self) -> DialFailure {
        let started = self.started.iter().copied();
        let unanswered = started
            .filter(|endpoint| !self.has_answered(*endpoint))
            .collect();
        DialFailure {
            unanswered,
            tried: std::mem::take(&mut self.failed),
            may_be_delivered: false,
        }
    }
}

/// What comes of `future` at once, or as soon as the runtime has seen the events that are there
/// by now; none when it takes longer. A connection within the node is made by then, and
/// is spared its timers: each may cost the runtime a wake-up, being earlier than all others.
async fn soon<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let first = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    if let Poll::Ready(done) = first {
        return Some(done);
    }
    yield_now().await;
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Whose fault a failed connect is.
pub(crate) fn fault_of(error: &io::Error) -> DialFault {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => DialFault::Refused,
        ErrorKind::TimedOut => DialFault::TimedOut,
        // Permission is denied by a packet filter on the way out.
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::PermissionDenied => DialFault::Unreachable,
        // No address: all ports towards this endpoint are in use.
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse | ErrorKind::OutOfMemory => {
            DialFault::Local
        }
        // No descriptor left in the process (EMFILE) or on the host (ENFILE), no buffer
        // (ENOBUFS): std has no kinds for them.
        _ => match error.raw_os_error() {
            Some(23 | 24 | 105) => DialFault::Local,
            Some(_) | None => DialFault::Other,
        },
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;

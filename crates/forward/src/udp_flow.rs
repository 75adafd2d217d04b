//! One UDP flow: a client's datagrams through one portal to one endpoint, and the answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edgemesh_sockets::{DatagramRun, EndpointAddr, SegmentLimit, join_datagrams, send_to_now};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::addrs::ClientAddr;
use crate::flow_cap::{FlowCap, Place};
use crate::metrics::{Counters, Way};
use crate::portal::{ActivePortal, Attempt};
use crate::reasons::{Blame, Dropped, FlowEnded};
use crate::udp_upstream::{Received, Sent, UdpUpstream};

/// An endpoint on trial that has not refused for this long counts as well: many UDP services
/// never answer at all.
const SILENCE_IS_CONSENT: Duration = Duration::from_secs(1);

/// What a portal's socket and the task for the answers share of a flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) client: ClientAddr,
    pub(crate) endpoint: EndpointAddr,
    upstream: UdpUpstream,
    clock: Clock,
    /// Nanoseconds of `clock`.
    last_use: AtomicU64,
    place: Mutex<Place>,
    end: Mutex<Option<FlowEnded>>,
    ending: CancellationToken,
}

/// A portal's socket, which all its flows answer by.
#[derive(Debug)]
pub(crate) struct PortalSocket {
    pub(crate) socket: UdpSocket,
    limit: SegmentLimit,
}

impl PortalSocket {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        join_datagrams(&socket);
        Self {
            socket,
            limit: SegmentLimit::default(),
        }
    }
}

/// Time since some moment before the first flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn at(self, nanos: u64) -> Instant {
        self.0 + Duration::from_nanos(nanos)
    }
}

impl Flow {
    pub(crate) fn new(
        client: ClientAddr,
        endpoint: EndpointAddr,
        upstream: UdpUpstream,
        clock: Clock,
    ) -> Self {
        Self {
            client,
            endpoint,
            upstream,
            clock,
            last_use: AtomicU64::new(clock.now()),
            place: Mutex::default(),
            end: Mutex::default(),
            ending: CancellationToken::new(),
        }
    }

    /// By which way it goes.
    pub(crate) fn way(&self) -> edgemesh_plan::Way {
        self.upstream.way()
    }

    /// Sends a datagram of the client on.
    pub(crate) fn send(&self, datagram: &[u8], counters: &Counters) -> Sent {
        self.touch();
        let sent = self.upstream.send(datagram);
        if matches!(sent, Sent::Yes) {
            counters.datagrams(Way::Up, 1, datagram.len());
        }
        sent
    }

    /// Sends many datagrams of the client on at once; none when they have to be sent one by
    /// one.
    pub(crate) fn send_run(&self, run: &DatagramRun<'_>, counters: &Counters) -> Option<Sent> {
        let sent = self.upstream.send_run(run)?;
        self.touch();
        if matches!(sent, Sent::Yes) {
            counters.datagrams(Way::Up, run.count(), run.bytes());
        }
        Some(sent)
    }

    /// Makes the flow end; the first reason counts.
    pub(crate) fn end(&self, reason: FlowEnded) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert(reason);
        self.ending.cancel();
    }

    pub(crate) fn evict(&self) {
        self.end(FlowEnded::Evicted);
    }

    /// Whether it takes no datagrams any more.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_cancelled()
    }

    /// Nanoseconds since the flows' common beginning.
    pub(crate) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    pub(crate) fn place(&self) -> Place {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_place(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    fn touch(&self) {
        self.last_use.store(self.clock.now(), Ordering::Relaxed);
    }

    fn why_it_ended(&self) -> FlowEnded {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.unwrap_or(FlowEnded::PortalClosed)
    }
}

/// The task of one flow: passes the answers on and notices its end.
pub(crate) struct Answers {
    pub(crate) flow: Arc<Flow>,
    /// The portal's socket: answers leave from where they were asked.
    pub(crate) socket: Arc<PortalSocket>,
    pub(crate) portal: Arc<ActivePortal>,
    /// What is still to be reported about the endpoint.
    pub(crate) attempt: Option<Attempt>,
    pub(crate) idle: Duration,
    pub(crate) cap: Arc<FlowCap>,
    pub(crate) counters: Arc<Counters>,
}

impl Answers {
    /// Runs until the flow ends, and tells whose flow it was.
    pub(crate) async fn run(mut self) -> Arc<Flow> {
        let flow = Arc::clone(&self.flow);
        let wake = sleep_until(self.next_wake());
        tokio::pin!(wake);
        loop {
            tokio::select! {
                biased;
                () = flow.ending.cancelled() => break,
                ready = flow.upstream.ready() => match ready {
                    Ok(()) => self.pass_on(),
                    Err(_) => flow.end(FlowEnded::EndpointFailed),
                },
                () = &mut wake => {
                    self.settle_silence();
                    if self.is_idle() {
                        flow.end(FlowEnded::Idle);
                    } else {
                        wake.as_mut().reset(self.next_wake());
                    }
                }
            }
            tokio::task::coop::consume_budget().await;
        }
        if let Some(blame) = flow.why_it_ended().blame() {
            self.report_failure(blame);
        }
        flow
    }

    fn pass_on(&mut self) {
        let mut any = false;
        let received = self.flow.upstream.receive(|run| {
            any = true;
            self.answer(run);
        });
        if any && let Some(attempt) = self.attempt.take() {
            attempt.succeeded();
        }
        match received {
            Received::Enough | Received::Empty => {}
            Received::Failed(fault) => self.flow.end(FlowEnded::for_blame(fault.blame())),
        }
    }

    fn answer(&self, run: &DatagramRun<'_>) {
        self.flow.touch();
        let client = self.flow.client.0;
        let PortalSocket { socket, limit } = &*self.socket;
        match limit.send_now(socket, run, Some(client)) {
            Some(sent) => self.count(sent, run.count(), run.bytes()),
            None => run.datagrams().for_each(|datagram| {
                let sent = send_to_now(socket, datagram, client).map(drop);
                self.count(sent, 1, datagram.len());
            }),
        }
    }

    fn count(&self, sent: io::Result<()>, datagrams: usize, bytes: usize) {
        let counters = &self.counters;
        match sent {
            Ok(()) => counters.datagrams(Way::Down, datagrams, bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                counters.drop_datagrams(Dropped::Full, datagrams);
            }
            Err(_) => counters.drop_datagrams(Dropped::SendFailed, datagrams),
        }
    }

    fn settle_silence(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            attempt.succeeded();
        }
    }

    fn report_failure(&mut self, blame: Blame) {
        let now = Instant::now().into_std();
        match self.attempt.take() {
            Some(attempt) => attempt.failed(blame, now),
            None => self.portal.lost(self.flow.endpoint, blame, now),
        }
    }

    fn is_idle(&self) -> bool {
        self.idle_at() <= Instant::now()
    }

    fn next_wake(&self) -> Instant {
        let idle_at = self.idle_at();
        if self.attempt.is_some() {
            idle_at.min(Instant::now() + SILENCE_IS_CONSENT)
        } else {
            idle_at
        }
    }

    fn idle_at(&self) -> Instant {
        self.flow.clock.at(self.flow.last_use()) + self.idle
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // Also when the task panicked or was aborted: nobody is to wait for its answers.
        self.flow.end(FlowEnded::PortalClosed);
        self.cap.forget(&self.flow);
        self.counters.flow_ended(self.flow.why_it_ended());
    }
}

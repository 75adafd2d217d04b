//! One UDP flow: a client's datagrams through one portal to one endpoint, and the answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edgemesh_sockets::{DatagramRun, EndpointAddr, SegmentLimit, join_datagrams};
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addrs::ClientAddr;
use crate::metrics::{Counters, Way};
use crate::reasons::FlowEnded;
use crate::udp_upstream::{Sent, UdpUpstream};

/// Where a flow stands among all: its last use, and a number that makes it unique.
pub(crate) type Place = (u64, u64);

/// What a portal's socket and the task for the answers share of a flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) client: ClientAddr,
    pub(crate) endpoint: EndpointAddr,
    pub(crate) upstream: UdpUpstream,
    clock: Clock,
    /// Nanoseconds of `clock`.
    last_use: AtomicU64,
    place: Mutex<Place>,
    end: Mutex<Option<FlowEnded>>,
    pub(crate) ending: CancellationToken,
}

/// A portal's socket, which all its flows answer by.
#[derive(Debug)]
pub(crate) struct PortalSocket {
    pub(crate) socket: UdpSocket,
    pub(crate) limit: SegmentLimit,
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

    /// When that was.
    pub(crate) fn used_at(&self) -> Instant {
        self.clock.at(self.last_use())
    }

    pub(crate) fn place(&self) -> Place {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_place(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    pub(crate) fn touch(&self) {
        self.last_use.store(self.clock.now(), Ordering::Relaxed);
    }

    pub(crate) fn why_it_ended(&self) -> FlowEnded {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.unwrap_or(FlowEnded::PortalClosed)
    }
}

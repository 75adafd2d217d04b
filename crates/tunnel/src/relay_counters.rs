//! What this node's relay has done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use iroh_relay::server::Metrics;

/// Figures of the relay, from the start of the process. All are zero when there is none.
#[derive(Debug, Default)]
pub struct RelayCounters {
    relay: Arc<Metrics>,
    clients: AtomicUsize,
    denied: AtomicU64,
    cut: AtomicU64,
    turned_away: AtomicU64,
    observers: AtomicUsize,
    observers_turned_away: AtomicU64,
}

impl RelayCounters {
    /// Peers that are connected now.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Clients that proved a key which is no peer's, and were refused.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Connections that were cut: their key is no longer a peer's, or had too many.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Connections that were closed at once, since too many were not proved yet.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Connections that ask for their address now.
    #[must_use]
    pub fn observers(&self) -> usize {
        self.observers.load(Ordering::Relaxed)
    }

    /// Connections that wanted to ask for their address and could not, since too many did.
    #[must_use]
    pub fn observers_turned_away(&self) -> u64 {
        self.observers_turned_away.load(Ordering::Relaxed)
    }

    /// Bytes that clients have sent.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.relay.bytes_recv.get()
    }

    /// Bytes that were sent to clients.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.relay.bytes_sent.get()
    }

    /// Packets for a client that is not there or is too slow.
    #[must_use]
    pub fn packets_dropped(&self) -> u64 {
        self.relay.send_packets_dropped.get()
    }

    /// Clients that were slowed down, for they sent more than a client may.
    #[must_use]
    pub fn slowed_down(&self) -> u64 {
        self.relay.conns_rx_ratelimited_total.get()
    }

    pub(crate) fn of_relay(&self) -> Arc<Metrics> {
        Arc::clone(&self.relay)
    }

    pub(crate) fn note_client_came(&self) {
        self.clients.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_client_left(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set_observers(&self, observers: usize) {
        self.observers.store(observers, Ordering::Relaxed);
    }

    pub(crate) fn note_denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_observer_turned_away(&self) {
        self.observers_turned_away.fetch_add(1, Ordering::Relaxed);
    }
}

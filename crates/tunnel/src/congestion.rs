//! How fast packets go out: a congestion controller for paths that lose packets by themselves.
//!
//! Edge nodes are reached by radio and by lines that lose a percent or two of all packets
//! however few are sent. A controller that takes each loss for congestion (cubic, and in its
//! way the transport's own BBR) has a tenth there of what the path could carry; one that heeds
//! no loss at all crowds out its neighbours and floods short queues.
//!
//! This one is built on the model of BBR (draft-ietf-ccwg-bbr-05): it measures what the path
//! delivers and how long an empty path takes, sends at that rate, and probes now and then for
//! more. What is its own is how it takes losses:
//!
//! * While it sends less than the path delivers, with nothing waiting on it, it counts what is
//!   lost all the same. That share is the path's own, the *floor*, and 5 % at most.
//! * Losses are congestion when they exceed the floor by more than the draft's 2 % *and* by
//!   more than chance explains in so few packets. The draft takes 2 % of what is under way, so
//!   that on a slow path a single packet ends a probe.
//! * Then it does what the draft does: a probe ends and remembers how much was too much; rate
//!   and window fall by up to 30 % a round until the next probe.
//!
//! So it yields to losses that it causes, on a path with any floor, and it is never bolder than
//! BBR of version 1, which heeds none.

mod bbr;
mod deliveries;
mod losses;
#[cfg(test)]
mod simulation;
mod windows;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use noq_proto::RttEstimator;
use noq_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

use self::bbr::Bbr;

/// Makes a controller for each path.
#[derive(Debug, Default)]
pub(crate) struct PathControllers {
    made: AtomicU64,
}

/// The controller of a path, as the transport sees it.
#[derive(Clone, Debug)]
struct PathController(Bbr);

impl ControllerFactory for PathControllers {
    fn build(self: Arc<Self>, _now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        // Paths must not all probe at the same time. This spreads the numbers (Knuth's
        // multiplicative hashing); nobody has to be unable to guess them.
        let number = self.made.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id());
        let chance = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Box::new(PathController(Bbr::new(current_mtu, chance)))
    }
}

impl Controller for PathController {
    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.0.sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.0.limited_by_window();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.0.acknowledged(now, sent, bytes, pn);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.0.end_of_batch(now, in_flight, app_limited);
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        _lost_bytes: u64,
        _largest_lost_pn: u64,
    ) {
        // Each lost packet was told by itself.
        if is_ecn {
            self.0.marked();
        }
        if is_persistent_congestion {
            self.0.collapsed();
        }
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.0.lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.0.was_not_lost();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.set_size(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.0.window();
        metrics.pacing_rate = self.0.pacing();
        metrics.send_quantum = self.0.at_once();
        metrics.bandwidth_estimate = Some((self.0.rate() * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

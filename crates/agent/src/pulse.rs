//! Keeps the gates before the portals open, as long as somebody serves behind them.
//!
//! That the process exists is not enough: when the sync loop or a listener hangs, the gates
//! are let close, and new connections are kube-proxy's.

use std::time::Duration;

use edgemesh_forward::Liveness;
use edgemesh_rules::Pulse;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// A gate closes 2 s after the last beat; a busy node may swallow a few.
const EVERY: Duration = Duration::from_millis(250);

/// A listener that has not gone round for so long counts as hung. It shows itself twice a
/// second.
const LISTENER_HUNG_AFTER: Duration = Duration::from_secs(3);

/// Beats until `stop`.
pub(crate) async fn keep_open(
    mut pulses: Vec<Pulse>,
    health: Health,
    listeners: Liveness,
    stop: CancellationToken,
) {
    let mut beat = interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let trouble = trouble(&health, &listeners);
        if trouble != told {
            match &trouble {
                Some(what) => tracing::error!(
                    "{what}: new connections are left to kube-proxy until that is over"
                ),
                None => tracing::info!("the agent serves again"),
            }
            told = trouble;
        }
        if told.is_none() && health.has_rules() {
            pulses.iter_mut().for_each(show);
        }
    }
}

fn trouble(health: &Health, listeners: &Liveness) -> Option<&'static str> {
    if health.alive().is_err() {
        return Some("the sync loop hangs");
    }
    match listeners.silent_for() {
        Some(silent) if silent < LISTENER_HUNG_AFTER => None,
        Some(_) => Some("a listener hangs"),
        None => Some("a listener has ended"),
    }
}

fn show(pulse: &mut Pulse) {
    if let Err(error) = pulse.beat() {
        tracing::debug!(%error, family = %pulse.family(), "the gate could not be kept open");
    }
}

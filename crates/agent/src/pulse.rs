//! Keeps the gates before the portals open, as long as somebody serves behind them.
//!
//! That the process exists is not enough: when the sync loop or a listener hangs, the gates
//! are let close, and new connections are kube-proxy's.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use edgemesh_forward::Liveness;
use edgemesh_rules::Pulse;
use tokio_util::sync::CancellationToken;

use crate::health::{Condition, Health};

/// A gate closes 2 s after the last beat; a busy node may swallow a few.
const EVERY: Duration = Duration::from_millis(250);

/// A listener that has not gone round for so long counts as hung. It shows itself twice a
/// second.
const LISTENER_HUNG_AFTER: Duration = Duration::from_secs(3);

/// Beats until `stop`.
///
/// On a thread of its own: the kernel has one lock for addresses, routes and links of all
/// network namespaces, and who asks for any of these may wait for seconds while many pods come
/// and go. No thread of the runtime may be there then to beat in time, and the gates must not
/// close before those who serve.
pub(crate) async fn keep_open(
    mut pulses: Vec<Pulse>,
    health: Health,
    listeners: Liveness,
    stop: CancellationToken,
) {
    let mut told = None;
    let beat = move || {
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
        let open = match told {
            Some(what) => Err(format!("closed: {what}")),
            None if health.has_rules() => {
                pulses.iter_mut().for_each(show);
                Ok(())
            }
            None => return,
        };
        health.set(Condition::Gates, open);
    };
    beat_until(stop, beat).await;
}

/// Calls `beat` again and again, until `stop` or dropped.
async fn beat_until(stop: CancellationToken, mut beat: impl FnMut() + Send + 'static) {
    let (goes_on, over) = mpsc::channel::<()>();
    let beating = tokio::task::spawn_blocking(move || {
        while over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            beat();
        }
    });
    let end = async move {
        stop.cancelled().await;
        drop(goes_on);
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = beating => ended,
        never = end => never,
    };
    if let Err(ended) = ended
        && let Ok(panic) = ended.try_into_panic()
    {
        std::panic::resume_unwind(panic);
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

/// Who can't be kept open is none: the rules have no gate where the kernel makes no sets.
fn show(pulse: &mut Pulse) {
    if let Err(error) = pulse.beat() {
        tracing::debug!(%error, family = %pulse.family(), "the gate could not be kept open");
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn it_beats_while_the_only_thread_of_the_runtime_waits_for_the_kernel() {
        let stop = CancellationToken::new();
        let (beats, seen) = mpsc::channel();
        let mut beating = JoinSet::new();
        beating.spawn(beat_until(stop.clone(), move || beats.send(()).unwrap()));
        tokio::task::yield_now().await;
        // This thread does nothing else, as in a system call that does not return.
        for _ in 0..3 {
            seen.recv_timeout(LONG).unwrap();
        }
        stop.cancel();
        beating.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_panics_while_it_beats_ends_who_waits_for_it() {
        let never = CancellationToken::new();
        let mut beating = JoinSet::new();
        beating.spawn(beat_until(never, || panic!("no more")));
        let ended = beating.join_next().await.unwrap();
        assert!(ended.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn it_ends_with_who_waits_for_it() {
        let (beats, seen) = mpsc::channel();
        let never = CancellationToken::new();
        let mut beating = JoinSet::new();
        beating.spawn(beat_until(never, move || beats.send(()).unwrap()));
        tokio::task::yield_now().await;
        seen.recv_timeout(LONG).unwrap();
        beating.shutdown().await;
        while seen.recv_timeout(LONG).is_ok() {}
    }
}

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

/// A gate closes 2 s (iptables) or 3 s (nftables) after the last beat; a busy node may swallow a
/// few.
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
    pulses: Vec<Pulse>,
    health: Health,
    listeners: Liveness,
    stop: CancellationToken,
) {
    let mut keeper = Keeper {
        pulses,
        health,
        listeners,
        told: None,
    };
    beat_until(stop, move || keeper.beat()).await;
}

struct Keeper {
    pulses: Vec<Pulse>,
    health: Health,
    listeners: Liveness,
    /// Why signs of life are withheld, as it was logged.
    told: Option<&'static str>,
}

impl Keeper {
    fn beat(&mut self) {
        let goes_round = self.health.alive().is_ok();
        let trouble = trouble(goes_round, self.listeners.silent_for());
        self.tell(trouble);
        if let Some(what) = trouble {
            self.pulses.iter_mut().for_each(Pulse::withhold);
            let closed = Err(format!("closed: {what}"));
            return self.health.set(Condition::Gates, closed);
        }
        // Asked before: ready is who has shown itself with its rules in.
        let has_rules = self.health.has_rules();
        self.pulses.iter_mut().for_each(show);
        if has_rules {
            self.health.set(Condition::Gates, Ok(()));
        }
    }

    fn tell(&mut self, trouble: Option<&'static str>) {
        if trouble == self.told {
            return;
        }
        match trouble {
            Some(what) => {
                tracing::error!(
                    "{what}: new connections are left to kube-proxy until that is over"
                );
            }
            None => tracing::info!("the agent serves again"),
        }
        self.told = trouble;
    }
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

/// Why nobody serves, if so: by whether the sync loop goes round, and how long the most silent of
/// the listeners has not, none if one has ended.
fn trouble(goes_round: bool, silent_for: Option<Duration>) -> Option<&'static str> {
    if !goes_round {
        return Some("the sync loop hangs");
    }
    match silent_for {
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

    #[test]
    fn nobody_serves_when_the_sync_loop_or_a_listener_hangs_or_one_has_ended() {
        let (now, late) = (Duration::ZERO, LISTENER_HUNG_AFTER);
        assert_eq!(trouble(true, Some(now)), None);
        assert_eq!(trouble(true, Some(late)), Some("a listener hangs"));
        assert_eq!(trouble(true, None), Some("a listener has ended"));
        assert_eq!(trouble(false, Some(now)), Some("the sync loop hangs"));
    }

    #[tokio::test]
    async fn gates_whose_listeners_have_ended_are_reported_closed_and_why() {
        let health = Health::new();
        let mut keeper = Keeper {
            pulses: Vec::new(),
            health: health.clone(),
            listeners: Liveness::default(),
            told: None,
        };
        health.set(Condition::Rules, Ok(()));
        keeper.beat();
        let (ready, text) = health.ready();
        assert!(
            !ready && text.contains("[-] gates: closed: a listener has ended"),
            "{text}"
        );
    }

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

//! Is the agent ready, and is it alive?
//!
//! Tasks report what they have reached; `/readyz` and `/healthz` read it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the sync loop may be silent before the agent counts as hung. One
/// transaction may take [`edgemesh_rules`]' whole process time-out, so this is
/// several of them.
const HUNG_AFTER: Duration = Duration::from_secs(120);

/// Shared view of what has been reached. Clones see the same state.
#[derive(Clone, Debug)]
pub(crate) struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    catalog: Result<(), String>,
    rules: Result<(), String>,
    listener: Result<(), String>,
    gates: Result<(), String>,
    /// The rules of some plan were brought into the kernel.
    had_rules: bool,
    stopping: bool,
    /// Agents that wait to take over, and how often each.
    waiting: BTreeMap<String, usize>,
    last_tick: Instant,
}

/// One of the things that must be true for readiness.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition {
    /// The catalog is complete.
    Catalog,
    /// The rules of the current plan are in the kernel.
    Rules,
    /// The forwarder accepts connections.
    Listener,
    /// The gates before the portals are open, where there are any, so that connections come.
    Gates,
}

impl Condition {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Catalog, Self::Rules, Self::Listener, Self::Gates];
}

impl Health {
    /// Nothing reached yet.
    pub(crate) fn new() -> Self {
        let not_yet = || Err("not yet".to_owned());
        Self(Arc::new(Mutex::new(State {
            catalog: not_yet(),
            rules: not_yet(),
            listener: not_yet(),
            gates: not_yet(),
            had_rules: false,
            stopping: false,
            waiting: BTreeMap::new(),
            last_tick: Instant::now(),
        })))
    }

    /// Reports a condition reached, or lost and why.
    pub(crate) fn set(&self, condition: Condition, status: Result<(), String>) {
        self.with(|state| match condition {
            Condition::Catalog => state.catalog = status,
            Condition::Rules => {
                state.had_rules |= status.is_ok();
                state.rules = status;
            }
            Condition::Listener => state.listener = status,
            Condition::Gates => state.gates = status,
        });
    }

    /// Whether rules of this process are in the kernel, though not always those that are
    /// wanted now.
    pub(crate) fn has_rules(&self) -> bool {
        self.with(|state| state.had_rules)
    }

    /// The sync loop went round once more.
    pub(crate) fn tick(&self) {
        self.with(|state| state.last_tick = Instant::now());
    }

    /// Shutdown began: never ready again.
    pub(crate) fn stopping(&self) {
        self.with(|state| state.stopping = true);
    }

    /// Another agent, `who`, waits to take over, until the guard is dropped.
    ///
    /// This one counts as not ready meanwhile: kubelet's probes of the other one's pod come
    /// to this one as long as it has the admin address.
    pub(crate) fn somebody_waits(&self, who: &str) -> Waiting {
        self.with(|state| *state.waiting.entry(who.to_owned()).or_default() += 1);
        Waiting {
            health: self.clone(),
            who: who.to_owned(),
        }
    }

    /// Whether traffic may be sent through this agent, and a line for each condition.
    pub(crate) fn ready(&self) -> (bool, String) {
        self.with(|state| {
            let conditions = [
                ("catalog", &state.catalog),
                ("rules", &state.rules),
                ("listener", &state.listener),
                ("gates", &state.gates),
            ];
            let ready = !state.stopping
                && state.waiting.is_empty()
                && conditions.iter().all(|(_, s)| s.is_ok());
            let mut text = String::new();
            for (name, status) in conditions {
                // Writing to a String cannot fail.
                let _ = match status {
                    Ok(()) => writeln!(text, "[+] {name} ok"),
                    Err(why) => writeln!(text, "[-] {name}: {why}"),
                };
            }
            for who in state.waiting.keys() {
                let _ = writeln!(text, "[-] handing over to {who}");
            }
            if state.stopping {
                text.push_str("[-] stopping\n");
            }
            (ready, text)
        })
    }

    /// What readiness depends on, each reached or not and why; `handing over` and `stopping`
    /// are there only when it is so.
    pub(crate) fn conditions(&self) -> Vec<(&'static str, Result<(), String>)> {
        self.with(|state| {
            let stopping = state
                .stopping
                .then(|| ("stopping", Err("the agent is ending".to_owned())));
            let waiting = state.waiting.keys();
            let handing_over = waiting.map(|who| ("handing over", Err(format!("to {who}"))));
            [
                ("catalog", state.catalog.clone()),
                ("rules", state.rules.clone()),
                ("listener", state.listener.clone()),
                ("gates", state.gates.clone()),
            ]
            .into_iter()
            .chain(handing_over)
            .chain(stopping)
            .collect()
        })
    }

    /// Whether the sync loop still goes round; if not, for how long it has not.
    pub(crate) fn alive(&self) -> Result<(), Duration> {
        let silent = self.with(|state| state.last_tick.elapsed());
        if silent < HUNG_AFTER {
            Ok(())
        } else {
            Err(silent)
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // A panic elsewhere while holding the lock leaves plain values behind.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An agent that waits to take over.
#[derive(Debug)]
pub(crate) struct Waiting {
    health: Health,
    who: String,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.health.with(|state| {
            if let Some(times) = state.waiting.get_mut(&self.who) {
                *times -= 1;
                if *times == 0 {
                    state.waiting.remove(&self.who);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_reached() -> Health {
        let health = Health::new();
        for condition in Condition::ALL {
            assert!(!health.ready().0, "not ready before {condition:?}");
            health.set(condition, Ok(()));
        }
        health
    }

    #[tokio::test]
    async fn ready_only_when_all_is_reached() {
        assert!(all_reached().ready().0);
    }

    #[tokio::test]
    async fn lost_condition_is_named_with_its_reason() {
        let health = all_reached();
        health.set(Condition::Rules, Err("iptables-restore failed".to_owned()));
        let (ready, text) = health.ready();
        assert!(!ready);
        assert!(
            text.contains("[-] rules: iptables-restore failed"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn stopping_agent_is_not_ready() {
        let health = all_reached();
        health.stopping();
        assert!(!health.ready().0);
    }

    #[tokio::test]
    async fn while_another_agent_waits_to_take_over_it_is_not_ready() {
        let health = all_reached();
        let waiting = ["new", "new"].map(|who| health.somebody_waits(who));
        let (ready, text) = health.ready();
        assert!(!ready && text.contains("[-] handing over to new"), "{text}");
        let [one, other] = waiting;
        drop(one);
        assert!(!health.ready().0);
        drop(other);
        assert!(health.ready().0);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_sync_loop_counts_as_hung() {
        let health = all_reached();
        tokio::time::advance(HUNG_AFTER).await;
        assert!(health.alive().is_err());
        health.tick();
        assert!(health.alive().is_ok());
    }
}

//! How often something is said. No I/O; time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use edgemesh_catalog::NodeName;
use tokio::time::Instant;

use super::PeerEvent;

/// What was said of late.
#[derive(Debug, Default)]
pub(super) struct EventRate {
    said: BTreeMap<(NodeName, &'static str), Instant>,
    /// When the next would be due, had none ever come early.
    due: Option<Instant>,
}

/// Whether something is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// For the first time in a while.
    First,
    /// Once more, for it lasts.
    Again,
    /// Not now.
    No,
}

impl EventRate {
    /// The same thing is said no more often.
    const AGAIN_AFTER: Duration = Duration::from_secs(600);
    /// What was not said for so long is new.
    const FORGET_AFTER: Duration = Duration::from_secs(3600);
    /// So many things may be said at once.
    const BURST: u32 = 10;
    /// And further ones no faster.
    const EVERY: Duration = Duration::from_secs(6);

    pub(super) fn turn(&mut self, event: &PeerEvent, now: Instant) -> Turn {
        let forgotten = |at: &Instant| now.duration_since(*at) >= Self::FORGET_AFTER;
        // Bounded by the rate: no more is said in that time.
        self.said.retain(|_, at| !forgotten(at));
        let key = (event.node.clone(), event.reason);
        let said_at = self.said.get(&key).copied();
        if said_at.is_some_and(|at| now.duration_since(at) < Self::AGAIN_AFTER) {
            return Turn::No;
        }
        let due = self.due.map_or(now, |due| due.max(now));
        if due > now + Self::EVERY * (Self::BURST - 1) {
            return Turn::No;
        }
        self.due = Some(due + Self::EVERY);
        self.said.insert(key, now);
        if said_at.is_some() {
            Turn::Again
        } else {
            Turn::First
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: &str, reason: &'static str) -> PeerEvent {
        PeerEvent {
            node: NodeName::new(node),
            reason,
            message: "m".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_thing_is_said_again_after_a_while_only() {
        let (mut rate, now) = (EventRate::default(), Instant::now());
        let mut after = |seconds| {
            let at = now + Duration::from_secs(seconds);
            rate.turn(&event("edge-1", "DuplicateKey"), at)
        };
        let turns = [0, 599, 600, 700, 1200, 5000].map(&mut after);
        assert_eq!(
            turns,
            [
                Turn::First,
                Turn::No,
                Turn::Again,
                Turn::No,
                Turn::Again,
                Turn::First
            ]
        );
        let other = rate.turn(
            &event("edge-1", "ChangedKey"),
            now + Duration::from_secs(5001),
        );
        assert_eq!(other, Turn::First);
    }

    #[tokio::test(start_paused = true)]
    async fn many_things_are_said_at_a_bounded_rate() {
        let (mut rate, now) = (EventRate::default(), Instant::now());
        let mut said = |from: u32, at: Instant| {
            (from..from + 100)
                .filter(|n| rate.turn(&event(&n.to_string(), "R"), at) == Turn::First)
                .count()
        };
        assert_eq!(said(0, now), 10);
        assert_eq!(said(100, now + Duration::from_secs(60)), 10);
        assert_eq!(said(200, now + Duration::from_secs(66)), 1);
    }
}

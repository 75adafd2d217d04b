//! What this agent says of itself to its peers, for its MeshNode.

use std::time::{Duration, SystemTime};

use edgemesh_catalog::{MeshNode, ProbePlaces};
use edgemesh_watch::{Condition, OwnMeshNode};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// How often is looked whether the agent is ready.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Keeps saying who this agent is and how it fares, until `stop`.
pub(super) async fn keep_saying(
    mut record: watch::Receiver<Option<MeshNode>>,
    mut places: watch::Receiver<Option<ProbePlaces>>,
    health: Health,
    own: watch::Sender<Option<OwnMeshNode>>,
    stop: CancellationToken,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready = Readiness::default();
    loop {
        let node = record.borrow_and_update().clone();
        let probe = places.borrow_and_update().clone().map(Box::new);
        if let Some(node) = node {
            let node = MeshNode { probe, ..node };
            let said = OwnMeshNode {
                node,
                conditions: vec![ready.condition(health.ready(), SystemTime::now())],
            };
            own.send_if_modified(|known| {
                let news = known.as_ref() != Some(&said);
                if news {
                    *known = Some(said);
                }
                news
            });
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = record.changed() => {}
            Ok(()) = places.changed() => {}
            _ = look.tick() => {}
        }
    }
}

/// Whether the agent is ready, and since when it is or is not.
#[derive(Debug, Default)]
struct Readiness(Option<(bool, SystemTime)>);

impl Readiness {
    /// The condition by what `/readyz` tells at `now`.
    fn condition(&mut self, (ready, report): (bool, String), now: SystemTime) -> Condition {
        let since = match self.0 {
            Some((known, since)) if known == ready => since,
            Some(_) | None => now,
        };
        self.0 = Some((ready, since));
        let wrong: Vec<&str> = report
            .lines()
            .filter_map(|line| line.strip_prefix("[-] "))
            .collect();
        Condition {
            kind: "Ready".into(),
            status: Some(ready),
            reason: if ready { "Serving" } else { "NotReady" }.into(),
            message: if ready {
                "the agent serves its node".into()
            } else {
                wrong.join("; ").into()
            },
            since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_dated_from_its_last_change_and_says_what_is_missing() {
        let mut ready = Readiness::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let not = || (false, "[+] catalog ok\n[-] rules: not yet\n".to_owned());
        assert_eq!(&*ready.condition(not(), at(1)).message, "rules: not yet");
        assert_eq!(ready.condition(not(), at(2)).since, at(1));
        let now = ready.condition((true, String::new()), at(3));
        assert_eq!((now.status, now.since), (Some(true), at(3)));
    }
}

//! How well precedence was held: since when, and what had to be put back.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// As many repairs are remembered one by one.
const REMEMBERED: usize = 10;

/// One thing that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Repaired {
    at: SystemTime,
    what: String,
    by: Option<String>,
}

/// The record of one family. Times are the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct PrecedenceRecord {
    since: Option<SystemTime>,
    repairs: u64,
    last: VecDeque<Repaired>,
}

/// The record as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PrecedenceReport {
    /// Since when everything of ours has stood where it must; none before the rules are in.
    pub(crate) held_since: Option<Moment>,
    /// Things put back so far.
    pub(crate) repairs: u64,
    /// The latest of them, newest first; at most ten.
    pub(crate) latest: Vec<RepairReport>,
}

/// One thing that was put back, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepairReport {
    /// When.
    pub(crate) at: Moment,
    /// What was found, for example "the jump from OUTPUT to EDGEMESH-PORTALS-HOST was missing".
    pub(crate) what: String,
    /// Who had undone it, where the kernel tells.
    pub(crate) by: Option<String>,
}

impl PrecedenceRecord {
    /// All of ours is in and where it must be.
    pub(crate) fn holds(&mut self, now: SystemTime) {
        self.since.get_or_insert(now);
    }

    /// Something was put back.
    pub(crate) fn repaired(&mut self, what: String, by: Option<String>, now: SystemTime) {
        self.since = Some(now);
        self.repairs += 1;
        self.last.push_front(Repaired { at: now, what, by });
        self.last.truncate(REMEMBERED);
    }

    /// The record as of `now`.
    pub(crate) fn report(&self, now: SystemTime) -> PrecedenceReport {
        PrecedenceReport {
            held_since: self.since.map(|since| Moment::seen(since, now)),
            repairs: self.repairs,
            latest: self
                .last
                .iter()
                .map(|repair| RepairReport {
                    at: Moment::seen(repair.at, now),
                    what: repair.what.clone(),
                    by: repair.by.clone(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_repair_begins_a_new_time_of_precedence() {
        let mut record = PrecedenceRecord::default();
        assert_eq!(record.report(at(0)).held_since, None);
        record.holds(at(10));
        record.holds(at(20));
        assert_eq!(record.report(at(70)).held_since.unwrap().seconds_ago, 60);

        record.repaired("the jump was missing".to_owned(), None, at(100));
        record.holds(at(101));
        let report = record.report(at(103));
        assert_eq!(report.held_since.unwrap().seconds_ago, 3);
        assert_eq!((report.repairs, report.latest.len()), (1, 1));
    }

    #[test]
    fn the_latest_repairs_are_kept_and_all_are_counted() {
        let mut record = PrecedenceRecord::default();
        for n in 0..25 {
            record.repaired(
                format!("repair {n}"),
                Some("nft (process 7)".to_owned()),
                at(n),
            );
        }
        let report = record.report(at(30));
        assert_eq!((report.repairs, report.latest.len()), (25, REMEMBERED));
        assert_eq!(report.latest[0].what, "repair 24");
    }
}

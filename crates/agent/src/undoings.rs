//! What others do to our rules: heard of, answered at a pace, and told.

use std::io;
use std::time::{Duration, SystemTime};

use edgemesh_rules::{Changer, Family, Repair, RuleChange, RuleEvents};
use tokio::time::Instant;

use crate::in_force::Telling;
use crate::repair_pace::{Pace, RepairPace};

/// As many changes are remembered until the next look, to tell who undid what is ours.
const REMEMBERED_CHANGES: usize = 64;

/// Who changes rules, and how soon what is ours may be put back.
#[derive(Debug)]
pub(crate) struct Undoings {
    /// None where the kernel tells of no changes.
    events: Option<RuleEvents>,
    /// Changes since the last look.
    changes: Vec<RuleChange>,
    pace: RepairPace,
}

impl Undoings {
    /// Begins to listen. Where the kernel tells nothing, the look `looking_every` so often
    /// has to do.
    pub(crate) fn listen(looking_every: Duration) -> Self {
        Self {
            events: RuleEvents::listen()
                .inspect_err(|error| {
                    tracing::info!(
                        %error, ?looking_every,
                        "the kernel does not tell of changes in nf_tables"
                    );
                })
                .ok(),
            changes: Vec::new(),
            pace: RepairPace::new(Instant::now()),
        }
    }

    /// Waits until anybody changed rules; for ever where the kernel does not tell. Safe to
    /// cancel.
    pub(crate) async fn next(&mut self) {
        let Some(events) = &mut self.events else {
            return std::future::pending().await;
        };
        let told = events.next().await;
        self.remember(told);
    }

    fn remember(&mut self, told: io::Result<Vec<RuleChange>>) {
        match told {
            Ok(changes) => {
                self.changes.extend(changes);
                let surplus = self.changes.len().saturating_sub(REMEMBERED_CHANGES);
                self.changes.drain(..surplus);
            }
            Err(error) => {
                // Anything may have changed.
                tracing::warn!(%error, "listening anew to changes in nf_tables");
                self.events = RuleEvents::listen().ok();
            }
        }
    }

    /// When the next repair may be made.
    pub(crate) fn not_before(&self) -> Instant {
        self.pace.not_before()
    }

    /// A look is over that began then, and `repairs` were made; `is_ours` tells the changes
    /// that we made ourselves, by their generation. Takes down what had been undone, and by
    /// whom.
    pub(crate) fn looked(
        &mut self,
        began: Instant,
        repairs: &[(Family, Repair)],
        is_ours: impl Fn(u32) -> bool,
        telling: &Telling,
    ) {
        let now = Instant::now();
        if !repairs.is_empty()
            && let Some(events) = &mut self.events
        {
            // A periodic look may have found it before the kernel's word was heard.
            let told = events.told();
            self.remember(told);
        }
        let last = self.changes.drain(..).rfind(|c| !is_ours(c.generation));
        let by = last.and_then(|change| change.by);
        if self.pace.has_calmed_down(now) {
            tracing::info!("nobody undoes the agent's rules any more");
        }
        let Some((_, first)) = repairs.first() else {
            return;
        };
        let pace = self.pace.repaired(now, now - began);
        if pace == Pace::Contested {
            tracing::warn!(
                by = by.as_ref().map(tracing::field::display), what = %first,
                "somebody keeps undoing the agent's rules: they are put back after pauses that \
                 grow up to 10 s, and kube-proxy serves meanwhile. Find out why, and stop it or \
                 the agent"
            );
        }
        for (family, repair) in repairs {
            let by = by.as_ref();
            let words = by.map(ToString::to_string);
            telling.undone(*family, repair.to_string(), words, SystemTime::now());
            log(*family, repair, by, pace);
        }
    }
}

/// One line for each repair, until there are pauses between them: then nothing new happens.
fn log(family: Family, repair: &Repair, by: Option<&Changer>, pace: Pace) {
    let by = by.map(tracing::field::display);
    match pace {
        Pace::AtOnce | Pace::Contested => {
            tracing::warn!(%family, %repair, undone_by = by, "rules were repaired");
        }
        Pace::Pausing(pause) => {
            tracing::debug!(%family, %repair, undone_by = by, ?pause, "rules were repaired");
        }
    }
}

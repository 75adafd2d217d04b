//! When to write. No I/O; time and chance are arguments.

use std::time::Duration;

use tokio::time::Instant;

use super::PublishTiming;
use crate::api::RetryPause;

/// Of the first writes of a run so many are followed by the next one sooner: a relay lets in only
/// who was published, and peers wait to be told by which one to meet it.
const HURRIED: u32 = 3;
/// In this part of the interval.
const HURRY: u32 = 20;

/// Whether and when the own MeshNode has to be written.
///
/// It is written when it changed, when it is due to be renewed, and when the catalog shows
/// that somebody else changed or removed it.
#[derive(Debug)]
pub(super) struct Upkeep {
    timing: PublishTiming,
    renews: bool,
    /// Whether there is something to write that was not written.
    dirty: bool,
    not_before: Option<Instant>,
    /// How often it may still be written soon after a write.
    hurried: u32,
    renew_at: Option<Instant>,
    shown: Shown,
    /// Whether the catalog ever showed what was written.
    was_shown: bool,
    /// When the catalog was last compared.
    looked_at: Option<Instant>,
    retry: RetryPause,
    put_back: RetryPause,
    overwritten_at: Option<Instant>,
}

/// What the catalog has shown since the last write of something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Not yet what was written (at that time, if it was).
    NotYet(Option<Instant>),
    /// What was written.
    Ours,
}

/// What the catalog says of the own MeshNode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// It is not there.
    Absent,
    /// It is as it should be.
    Ours,
    /// It is as it was written before: the catalog lags behind.
    Earlier,
    /// It is as nobody here wrote it of late.
    Other,
}

/// What to make of a sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing, for the time being.
    Fine,
    /// Somebody else changed or removed it. It will be put back after this time.
    Overwritten {
        /// After how long it is put back.
        pause: Duration,
        /// Whether it is worth a log line: the first time in a while.
        worth_saying: bool,
    },
}

impl Upkeep {
    pub(super) fn new(timing: PublishTiming, renews: bool) -> Self {
        Self {
            renews,
            dirty: false,
            not_before: None,
            hurried: HURRIED,
            renew_at: None,
            shown: Shown::NotYet(None),
            was_shown: false,
            looked_at: None,
            retry: RetryPause::new(timing.retry_min, timing.retry_max),
            put_back: RetryPause::new(timing.put_back_min, timing.put_back_max),
            overwritten_at: None,
            timing,
        }
    }

    /// There is something new to write.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
        self.shown = Shown::NotYet(None);
    }

    /// When to write next; none while there is nothing to.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let at = if self.dirty { now } else { self.renew_at? };
        Some(self.not_before.map_or(at, |not_before| not_before.max(at)))
    }

    /// When to look at the catalog again, even if it did not change.
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self.shown {
            Shown::NotYet(Some(written)) if !self.dirty => {
                let at = written + self.timing.settle;
                self.looked_at
                    .is_none_or(|looked| looked < at)
                    .then_some(at)
            }
            Shown::NotYet(_) | Shown::Ours => None,
        }
    }

    /// It was written, in a cluster of so many nodes. `chance`, from 0 up to 1, spreads their
    /// renewals.
    pub(super) fn wrote(&mut self, now: Instant, nodes: usize, chance: f64) {
        self.dirty = false;
        let interval = match self.hurried.checked_sub(1) {
            None => self.timing.interval,
            Some(left) => {
                self.hurried = left;
                self.timing.interval / HURRY
            }
        };
        self.not_before = Some(now + interval);
        let hundreds = u32::try_from(nodes.div_ceil(100)).unwrap_or(u32::MAX);
        let renewal = self.timing.renewal.saturating_mul(hundreds.max(1));
        let renewal = renewal.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0));
        self.renew_at = self.renews.then(|| now + renewal);
        if self.shown != Shown::Ours {
            self.shown = Shown::NotYet(Some(now));
        }
    }

    /// It could not be written. Returns the pause before it is tried again.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        asked: Option<Duration>,
        chance: f64,
    ) -> Duration {
        self.dirty = true;
        let pause = self
            .retry
            .after_failure(now, chance)
            .max(asked.unwrap_or_default());
        self.not_before = Some(now + pause);
        pause
    }

    /// The catalog shows this.
    pub(super) fn sees(&mut self, sight: Sight, now: Instant, chance: f64) -> Verdict {
        if self.dirty {
            return Verdict::Fine;
        }
        self.looked_at = Some(now);
        let overwritten = match (self.shown, sight) {
            (_, Sight::Ours) => {
                self.shown = Shown::Ours;
                self.was_shown = true;
                false
            }
            (Shown::Ours, Sight::Absent | Sight::Other) => true,
            // What was shown as ours was of even earlier: it was changed to and fro.
            (Shown::Ours, Sight::Earlier) => {
                self.shown = Shown::NotYet(Some(now));
                false
            }
            // MeshNodes may not be readable at all; the next renewal writes it anyhow.
            (Shown::NotYet(_), Sight::Absent) if !self.was_shown => false,
            // Most probably the catalog lags behind what was written.
            (Shown::NotYet(written), Sight::Other | Sight::Earlier | Sight::Absent) => {
                written.is_some_and(|written| now >= written + self.timing.settle)
            }
        };
        if !overwritten {
            return Verdict::Fine;
        }
        let pause = self.put_back.after_failure(now, chance);
        let quiet = |at: Instant| now.duration_since(at) > 4 * self.timing.put_back_max;
        let worth_saying = self.overwritten_at.is_none_or(quiet);
        self.overwritten_at = Some(now);
        self.changed();
        let at = now + pause;
        self.not_before = Some(self.not_before.map_or(at, |not_before| not_before.max(at)));
        Verdict::Overwritten {
            pause,
            worth_saying,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upkeep() -> Upkeep {
        Upkeep::new(PublishTiming::default(), true)
    }

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn first_word_is_written_at_once_a_few_soon_and_others_once_a_second() {
        let (mut upkeep, mut now) = (upkeep(), Instant::now());
        assert_eq!(upkeep.due(now), None);
        upkeep.changed();
        assert_eq!(upkeep.due(now), Some(now));
        let mut pauses = Vec::new();
        for _ in 0..5 {
            upkeep.wrote(now, 1, 0.5);
            upkeep.changed();
            upkeep.changed();
            let due = upkeep.due(now).expect("it changed");
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [50, 50, 50, 1000, 1000]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_with_jitter_and_only_where_that_says_something() {
        let now = Instant::now();
        for (chance, seconds) in [(0.0, 240), (1.0, 360)] {
            let mut upkeep = upkeep();
            upkeep.changed();
            upkeep.wrote(now, 1, chance);
            assert_eq!(upkeep.due(now), Some(now + after(seconds)));
        }
        let mut file = Upkeep::new(PublishTiming::default(), false);
        file.changed();
        file.wrote(now, 1, 0.5);
        assert_eq!(file.due(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn large_clusters_renew_less_often() {
        let now = Instant::now();
        for (nodes, seconds) in [(0, 300), (100, 300), (101, 600), (2000, 6000)] {
            let mut upkeep = upkeep();
            upkeep.changed();
            upkeep.wrote(now, nodes, 0.5);
            assert_eq!(upkeep.due(now), Some(now + after(seconds)), "{nodes} nodes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_with_growing_pauses_or_when_asked() {
        let (mut upkeep, now) = (upkeep(), Instant::now());
        upkeep.changed();
        assert_eq!(upkeep.failed(now, None, 0.0), after(1));
        assert_eq!(upkeep.failed(now, None, 0.0), after(2));
        assert_eq!(upkeep.failed(now, Some(after(30)), 0.0), after(30));
        upkeep.changed();
        assert_eq!(
            upkeep.due(now),
            Some(now + after(30)),
            "a change does not hurry it"
        );
    }

    fn published(now: Instant) -> Upkeep {
        let mut upkeep = upkeep();
        upkeep.changed();
        upkeep.wrote(now, 1, 0.5);
        upkeep
    }

    #[tokio::test(start_paused = true)]
    async fn catalog_that_lags_behind_a_write_alarms_nobody() {
        let now = Instant::now();
        let mut upkeep = published(now);
        for sight in [Sight::Other, Sight::Other] {
            assert_eq!(upkeep.sees(sight, now, 0.0), Verdict::Fine);
        }
        assert_eq!(upkeep.look_at(), Some(now + after(10)));
        assert_eq!(upkeep.sees(Sight::Ours, now, 0.0), Verdict::Fine);
        assert_eq!(upkeep.look_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_to_and_fro_faster_than_the_catalog_alarms_nobody() {
        let now = Instant::now();
        let mut upkeep = published(now);
        for sight in [Sight::Ours, Sight::Earlier, Sight::Ours] {
            assert_eq!(upkeep.sees(sight, now, 0.0), Verdict::Fine);
        }
        upkeep.sees(Sight::Earlier, now, 0.0);
        let verdict = upkeep.sees(Sight::Earlier, now + after(10), 0.0);
        assert!(
            matches!(verdict, Verdict::Overwritten { .. }),
            "it stays so"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_changed_or_removed_is_put_back_with_growing_pauses_and_said_once() {
        let mut now = Instant::now();
        let mut upkeep = published(now);
        let mut pauses = Vec::new();
        for (round, sight) in [Sight::Other, Sight::Absent, Sight::Other]
            .into_iter()
            .enumerate()
        {
            upkeep.sees(Sight::Ours, now, 0.0);
            let Verdict::Overwritten {
                pause,
                worth_saying,
            } = upkeep.sees(sight, now, 0.0)
            else {
                panic!("{sight:?} is noticed");
            };
            assert_eq!(worth_saying, round == 0);
            assert_eq!(upkeep.sees(sight, now, 0.0), Verdict::Fine, "noticed once");
            now = upkeep.due(now).expect("put back");
            upkeep.wrote(now, 1, 0.5);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_overwrites_before_the_catalog_shows_it_is_found_out_by_time() {
        let now = Instant::now();
        for sight in [Sight::Other, Sight::Absent] {
            let mut upkeep = published(now);
            upkeep.sees(Sight::Ours, now, 0.0);
            upkeep.changed();
            upkeep.wrote(now, 1, 0.5);
            let later = upkeep.look_at().expect("a time to look");
            let verdict = upkeep.sees(sight, later, 0.0);
            assert!(matches!(verdict, Verdict::Overwritten { .. }), "{sight:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn mesh_nodes_that_cannot_be_read_are_no_sign_of_a_rival() {
        let now = Instant::now();
        let mut upkeep = published(now);
        let later = now + after(20);
        assert_eq!(upkeep.sees(Sight::Absent, later, 0.0), Verdict::Fine);
        assert_eq!(upkeep.look_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_does_not_ask_the_catalog_to_show_it_again() {
        let now = Instant::now();
        let mut upkeep = published(now);
        upkeep.sees(Sight::Ours, now, 0.0);
        upkeep.wrote(now + after(300), 1, 0.5);
        assert_eq!(upkeep.look_at(), None);
    }
}

//! Which side makes the connection with a peer, learnt by trying. Pure.

use edgemesh_wire::Dialler;
use tokio::time::{Duration, Instant};

/// How long what did not work is not tried again. A NAT stays one; somebody may open a port.
const AGAIN_AFTER: Duration = Duration::from_secs(120);
/// The same for what worked and then broke, as when a node gets another address.
const AFTER_LOSS: Duration = Duration::from_secs(20);

/// How long attempts that were not brought to an end may take, all together, before they count
/// as one that did not work: as long as one that tries all addresses in vain.
const IN_VAIN: Duration = Duration::from_secs(6);

/// What is known of the ways between this node and one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trials {
    opener: Trial,
    exit: Trial,
}

/// What is known of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    found: Found,
    /// How long attempts have gone on that were not brought to an end.
    in_vain: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
enum Found {
    #[default]
    Unknown,
    Worked,
    NotBefore(Instant),
}

impl Trial {
    fn has_worked(self) -> bool {
        matches!(self.found, Found::Worked)
    }

    fn may_be_tried(self, now: Instant) -> bool {
        match self.found {
            Found::Unknown | Found::Worked => true,
            Found::NotBefore(moment) => now >= moment,
        }
    }

    /// From now on this is known.
    fn found(&mut self, found: Found) {
        let in_vain = Duration::ZERO;
        *self = Self { found, in_vain };
    }
}

impl Trials {
    /// Who should dial; none while it is known that neither can.
    pub(super) fn next(&self, now: Instant) -> Option<Dialler> {
        let ways = [(Dialler::Opener, self.opener), (Dialler::Exit, self.exit)];
        let worked = ways.iter().find(|(_, trial)| trial.has_worked());
        let next = worked.or_else(|| ways.iter().find(|(_, trial)| trial.may_be_tried(now)));
        next.map(|(dialler, _)| *dialler)
    }

    /// It worked, or it did not.
    pub(super) fn note(&mut self, dialler: Dialler, worked: bool, now: Instant) {
        self.of(dialler).found(if worked {
            Found::Worked
        } else {
            Found::NotBefore(now + AGAIN_AFTER)
        });
    }

    /// The stream that it was tried for ended before it was known, after it had `taken` so
    /// long. One that never works would be tried for ever by streams that are shorter.
    pub(super) fn note_unfinished(&mut self, dialler: Dialler, taken: Duration, now: Instant) {
        let trial = self.of(dialler);
        trial.in_vain += taken;
        if trial.in_vain >= IN_VAIN {
            trial.found(Found::NotBefore(now + AGAIN_AFTER));
        }
    }

    /// A lane was lost that had worked. What broke it breaks others as well.
    pub(super) fn note_lost(&mut self, now: Instant) {
        for trial in [&mut self.opener, &mut self.exit] {
            if trial.has_worked() {
                trial.found(Found::NotBefore(now + AFTER_LOSS));
            }
        }
    }

    fn of(&mut self, dialler: Dialler) -> &mut Trial {
        match dialler {
            Dialler::Opener => &mut self.opener,
            Dialler::Exit => &mut self.exit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_worked_is_tried_first_and_what_did_not_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut trials = Trials::default();
        assert_eq!(trials.next(now), Some(Dialler::Opener));
        trials.note(Dialler::Opener, false, now);
        assert_eq!(trials.next(now), Some(Dialler::Exit));
        trials.note(Dialler::Exit, false, now);
        assert_eq!(trials.next(now), None);
        let later = now + AGAIN_AFTER;
        assert_eq!(trials.next(later), Some(Dialler::Opener));
        trials.note(Dialler::Exit, true, later);
        assert_eq!(trials.next(later), Some(Dialler::Exit));
        trials.note_lost(later);
        assert_eq!(trials.next(later), Some(Dialler::Opener));
        trials.note(Dialler::Opener, false, later);
        assert_eq!(trials.next(later), None);
        assert_eq!(trials.next(later + AFTER_LOSS), Some(Dialler::Exit));
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_end_before_an_attempt_does_find_out_together_that_it_is_in_vain() {
        let now = Instant::now();
        let mut trials = Trials::default();
        for _ in 0..5 {
            trials.note_unfinished(Dialler::Opener, IN_VAIN / 6, now);
            assert_eq!(trials.next(now), Some(Dialler::Opener));
        }
        trials.note_unfinished(Dialler::Opener, IN_VAIN / 6 + IN_VAIN / 100, now);
        assert_eq!(trials.next(now), Some(Dialler::Exit));
        trials.note(Dialler::Exit, true, now);
        trials.note_unfinished(Dialler::Exit, IN_VAIN / 2, now);
        assert_eq!(trials.next(now), Some(Dialler::Exit));
        trials.note(Dialler::Exit, true, now);
        trials.note_unfinished(Dialler::Exit, IN_VAIN / 2, now);
        assert_eq!(trials.next(now), Some(Dialler::Exit));
        trials.note_unfinished(Dialler::Exit, IN_VAIN / 2, now);
        assert_eq!(trials.next(now), None);
    }
}

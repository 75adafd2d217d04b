//! Which side makes the connection with a peer, learnt by trying. Pure.

use edgemesh_wire::Dialler;
use tokio::time::{Duration, Instant};

/// How long what did not work is not tried again. A NAT stays one; somebody may open a port.
const AGAIN_AFTER: Duration = Duration::from_secs(120);
/// The same for what worked and then broke, as when a node gets another address.
const AFTER_LOSS: Duration = Duration::from_secs(20);

/// What is known of the ways between this node and one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trials {
    opener: Trial,
    exit: Trial,
}

#[derive(Clone, Copy, Debug, Default)]
enum Trial {
    #[default]
    Unknown,
    Worked,
    NotBefore(Instant),
}

impl Trial {
    fn may_be_tried(self, now: Instant) -> bool {
        match self {
            Self::Unknown | Self::Worked => true,
            Self::NotBefore(moment) => now >= moment,
        }
    }
}

impl Trials {
    /// Who should dial; none while it is known that neither can.
    pub(super) fn next(&self, now: Instant) -> Option<Dialler> {
        match (self.opener, self.exit) {
            (Trial::Worked, _) => Some(Dialler::Opener),
            (_, Trial::Worked) => Some(Dialler::Exit),
            (opener, _) if opener.may_be_tried(now) => Some(Dialler::Opener),
            (_, exit) if exit.may_be_tried(now) => Some(Dialler::Exit),
            _ => None,
        }
    }

    /// It worked, or it did not.
    pub(super) fn note(&mut self, dialler: Dialler, worked: bool, now: Instant) {
        let trial = match dialler {
            Dialler::Opener => &mut self.opener,
            Dialler::Exit => &mut self.exit,
        };
        *trial = if worked {
            Trial::Worked
        } else {
            Trial::NotBefore(now + AGAIN_AFTER)
        };
    }

    /// A lane was lost that had worked. What broke it breaks others as well.
    pub(super) fn note_lost(&mut self, now: Instant) {
        for trial in [&mut self.opener, &mut self.exit] {
            if matches!(trial, Trial::Worked) {
                *trial = Trial::NotBefore(now + AFTER_LOSS);
            }
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
}

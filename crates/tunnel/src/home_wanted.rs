//! When to ask the transport again for a relay to be found at, because it has none.
//!
//! It chooses one when it was told of relays, and then looks again every 20 to 26 s
//! (`new_re_stun_timer` of iroh 1.4). Two things can leave it without one that long: no relay
//! answered yet; or it chose one and dropped it at once, as it does when the look that every
//! start begins with ends right after the one that chose: without UDP to the relay, that second
//! look measures nothing, chooses nothing, and may be heard before the first choice counts.

use std::time::Duration;

use tokio::time::Instant;

/// What a choice may take before it is asked for again: at a start a relay that answers is
/// chosen within 0.3 s, later within 3.3 s where UDP is blocked. To ask in vain costs a probe of
/// each relay.
const FIRST: Duration = Duration::from_secs(1);
/// The pause doubles up to this.
const MOST: Duration = Duration::from_secs(8);

/// Since when a relay is missed.
#[derive(Debug, Default)]
pub(crate) struct HomeWanted(Option<Waiting>);

#[derive(Debug)]
struct Waiting {
    ask_at: Instant,
    pause: Duration,
}

impl HomeWanted {
    /// Whether there are relays and none is chosen.
    pub(crate) fn note(&mut self, missed: bool, now: Instant) {
        if missed {
            self.0.get_or_insert(Waiting {
                ask_at: now + FIRST,
                pause: FIRST,
            });
        } else {
            self.0 = None;
        }
    }

    /// When to ask, if nothing happens before.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.as_ref().map(|waiting| waiting.ask_at)
    }

    /// Whether to ask now.
    pub(crate) fn ask(&mut self, now: Instant) -> bool {
        let Some(waiting) = self.0.as_mut().filter(|waiting| waiting.ask_at <= now) else {
            return false;
        };
        waiting.pause = (2 * waiting.pause).min(MOST);
        waiting.ask_at = now + waiting.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds_of_questions(wanted: &mut HomeWanted, start: Instant, until: u64) -> Vec<u64> {
        let mut asked = Vec::new();
        for second in 0..=until {
            let now = start + Duration::from_secs(second);
            wanted.note(true, now);
            if wanted.ask(now) {
                asked.push(second);
            }
        }
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn is_asked_for_again_with_pauses_that_grow_up_to_a_limit() {
        let mut wanted = HomeWanted::default();
        let asked = seconds_of_questions(&mut wanted, Instant::now(), 32);
        assert_eq!(asked, [1, 3, 7, 15, 23, 31]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_choice_ends_the_questions_and_its_loss_begins_them_anew() {
        let mut wanted = HomeWanted::default();
        let start = Instant::now();
        assert_eq!(seconds_of_questions(&mut wanted, start, 8), [1, 3, 7]);
        wanted.note(false, start);
        assert_eq!(wanted.due(), None);
        assert!(!wanted.ask(start + MOST));
        assert_eq!(seconds_of_questions(&mut wanted, start, 3), [1, 3]);
    }
}

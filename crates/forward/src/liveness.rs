//! Whether the listeners go round: a process may be there and yet serve nobody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What the listeners last showed of themselves. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Liveness(Arc<Mutex<Vec<Option<Instant>>>>);

/// One listener's way to show that it goes round; when it is dropped, it no longer does.
#[derive(Debug)]
pub(crate) struct SignOfLife {
    liveness: Liveness,
    place: usize,
}

impl Liveness {
    /// For how long the most silent of the listeners has shown nothing; none when one has
    /// ended, or none has begun. A listener shows itself twice a second.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        let now = Instant::now();
        self.with(|signs| {
            let silences = signs
                .iter()
                .map(|sign| sign.map(|last| now.saturating_duration_since(last)));
            silences
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().max())
        })
    }

    pub(crate) fn listener(&self) -> SignOfLife {
        SignOfLife {
            liveness: self.clone(),
            place: self.with(|signs| {
                signs.push(Some(Instant::now()));
                signs.len() - 1
            }),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<Option<Instant>>) -> T) -> T {
        // A panic elsewhere while holding the lock leaves plain values behind.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, place: usize, sign: Option<Instant>) {
        self.with(|signs| {
            if let Some(known) = signs.get_mut(place) {
                *known = sign;
            }
        });
    }
}

impl SignOfLife {
    pub(crate) fn give(&self) {
        self.liveness.set(self.place, Some(Instant::now()));
    }
}

impl Drop for SignOfLife {
    fn drop(&mut self) {
        self.liveness.set(self.place, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_most_silent_listener_counts_and_an_ended_one_is_not_alive() {
        let liveness = Liveness::default();
        assert_eq!(liveness.silent_for(), None);
        let (quiet, busy) = (liveness.listener(), liveness.listener());
        tokio::time::advance(Duration::from_secs(3)).await;
        busy.give();
        assert_eq!(liveness.silent_for(), Some(Duration::from_secs(3)));
        quiet.give();
        assert_eq!(liveness.silent_for(), Some(Duration::ZERO));
        drop(busy);
        assert_eq!(liveness.silent_for(), None);
    }
}

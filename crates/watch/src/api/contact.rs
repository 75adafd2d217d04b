//! Whether the API server answers, and for how long it has not.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::counters::Counters;

/// What the last requests came to. The HTTP client reports answers, the watches
/// report failures.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    counters: Arc<Counters>,
    outage: Arc<Mutex<Option<Outage>>>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    said_at: Instant,
}

/// What to make of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How long there has been no good answer, as of the first failure.
    pub(crate) lasting: Duration,
    /// Whether it is worth a log line: the first, and then one a minute.
    pub(crate) worth_saying: bool,
}

impl Contact {
    const SAY_AGAIN: Duration = Duration::from_secs(60);

    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            outage: Arc::default(),
        }
    }

    /// A request was answered well.
    pub(crate) fn answered(&self) {
        if let Some(outage) = self.outage().take() {
            self.counters.set_failing(false);
            info!(
                after_s = outage.since.elapsed().as_secs(),
                "the API server answers again"
            );
        }
    }

    /// A request failed, or a watch broke.
    pub(crate) fn failed(&self) -> Failure {
        self.counters.add_watch_error();
        let now = Instant::now();
        let mut outage = self.outage();
        let Some(known) = outage.as_mut() else {
            *outage = Some(Outage {
                since: now,
                said_at: now,
            });
            self.counters.set_failing(true);
            return Failure {
                lasting: Duration::ZERO,
                worth_saying: true,
            };
        };
        let worth_saying = now.duration_since(known.said_at) >= Self::SAY_AGAIN;
        if worth_saying {
            known.said_at = now;
        }
        Failure {
            lasting: now.duration_since(known.since),
            worth_saying,
        }
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        match self.outage.lock() {
            Ok(outage) => outage,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_until_an_answer_and_is_said_once_a_minute() {
        let contact = Contact::new(Arc::default());
        let mut said = 0;
        for _ in 0..=120 {
            said += u32::from(contact.failed().worth_saying);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(said, 3);
        assert_eq!(contact.failed().lasting, Duration::from_secs(121));
        assert!(contact.counters.failing_since().is_some());

        contact.answered();
        assert!(contact.counters.failing_since().is_none());
        assert_eq!(
            contact.failed(),
            Failure {
                lasting: Duration::ZERO,
                worth_saying: true
            }
        );
    }
}

//! Few publications of many changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::counters::Counters;
use crate::state::SourceState;

/// Sends states to their readers: the first change at once, those that follow
/// within the interval together.
#[derive(Debug)]
pub(crate) struct Publisher {
    sender: watch::Sender<SourceState>,
    counters: Arc<Counters>,
    interval: Duration,
    not_before: Option<Instant>,
    due: Option<Instant>,
}

impl Publisher {
    /// A publisher, and the channel that its states travel on.
    pub(crate) fn new(
        interval: Duration,
        counters: Arc<Counters>,
    ) -> (Self, watch::Receiver<SourceState>) {
        let (sender, receiver) = watch::channel(SourceState::default());
        let publisher = Self {
            sender,
            counters,
            interval,
            not_before: None,
            due: None,
        };
        (publisher, receiver)
    }

    /// The state that readers see.
    pub(crate) fn current(&self) -> watch::Ref<'_, SourceState> {
        self.sender.borrow()
    }

    /// There is something new: [`Publisher::due`] will say when to publish it.
    pub(crate) fn changed(&mut self) {
        let now = Instant::now();
        self.due.get_or_insert(
            self.not_before
                .map_or(now, |not_before| not_before.max(now)),
        );
    }

    /// Whether something waits to be published.
    pub(crate) fn is_due(&self) -> bool {
        self.due.is_some()
    }

    /// Waits until there is something to publish and its time has come.
    pub(crate) async fn due(&self) {
        match self.due {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Publishes, whether due or not.
    pub(crate) fn publish(&mut self, state: SourceState) {
        self.due = None;
        self.not_before = Some(Instant::now() + self.interval);
        self.counters.add_published();
        self.sender.send_replace(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_change_goes_out_at_once_and_a_burst_together() {
        let interval = Duration::from_millis(50);
        let (mut publisher, _receiver) = Publisher::new(interval, Arc::default());
        let began = Instant::now();

        publisher.changed();
        publisher.due().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        publisher.publish(SourceState::default());

        for _ in 0..1000 {
            publisher.changed();
        }
        publisher.due().await;
        assert_eq!(began.elapsed(), interval);
        publisher.publish(SourceState::default());
        assert_eq!(publisher.counters.published(), 2);
    }
}

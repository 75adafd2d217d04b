//! The task that keeps the file up to date.

use std::time::{Duration, SystemTime};

use edgemesh_catalog::Catalog;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::file::{LastGoodError, LastGoodFile};
use crate::state::{Origin, SourceState};

/// Saves what the API server said, not more often than the interval, and once more
/// at shutdown.
#[derive(Debug)]
pub struct LastGoodSaver {
    file: LastGoodFile,
    interval: Duration,
    states: watch::Receiver<SourceState>,
    /// What the file held at first. Not kept longer: it would keep the source from
    /// changing its catalog in place.
    loaded: Option<Catalog>,
    /// Whether something came since the last save.
    unsaved: bool,
    failed: bool,
}

impl LastGoodSaver {
    /// Saves `states` to `file`, at most once in `interval` (10 s is a good value: a
    /// flash disk is worn out by writing). What was loaded from `file` may be given, so
    /// that it is not written again.
    #[must_use]
    pub fn new(
        file: LastGoodFile,
        interval: Duration,
        states: watch::Receiver<SourceState>,
        loaded: Option<Catalog>,
    ) -> Self {
        Self {
            file,
            interval,
            states,
            loaded,
            unsaved: false,
            failed: false,
        }
    }

    /// Works until `shutdown` or until the source ends, then saves a last time.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut not_before = Instant::now();
        while let Some(Ok(())) = shutdown.run_until_cancelled(self.next(not_before)).await {
            if self.save_if_new().await {
                not_before = Instant::now() + self.interval;
            }
        }
        self.unsaved |= self.states.has_changed().unwrap_or(false);
        if self.unsaved {
            self.save_if_new().await;
        }
    }

    /// Waits for something to save, and for the time when it may be. Errs when the
    /// source is gone. Dropping the future forgets nothing.
    async fn next(&mut self, not_before: Instant) -> Result<(), watch::error::RecvError> {
        if !self.unsaved {
            self.states.changed().await?;
            self.unsaved = true;
        }
        sleep_until(not_before).await;
        Ok(())
    }

    /// Returns whether a save was tried.
    async fn save_if_new(&mut self) -> bool {
        let Some(catalog) = self.worth_saving() else {
            self.unsaved = false;
            return false;
        };
        let file = self.file.clone();
        let saved = spawn_blocking(move || file.save(&catalog, SystemTime::now())).await;
        match saved {
            Ok(Ok(())) => self.note_saved(),
            Ok(Err(error)) => self.note_failed(&error),
            Err(error) => warn!(%error, "saving the last good catalog did not end well"),
        }
        true
    }

    fn worth_saving(&mut self) -> Option<Catalog> {
        let state = self.states.borrow_and_update();
        if !state.complete || state.origin != Origin::Api {
            return None;
        }
        let known = self.loaded.take();
        (known.as_ref() != Some(&state.catalog)).then(|| state.catalog.clone())
    }

    fn note_saved(&mut self) {
        self.unsaved = false;
        debug!(path = %self.file.path().display(), "saved the last good catalog");
        if std::mem::take(&mut self.failed) {
            info!("the last good catalog can be saved again");
        }
    }

    fn note_failed(&mut self, error: &LastGoodError) {
        if !std::mem::replace(&mut self.failed, true) {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            warn!(
                %error, cause,
                "the last good catalog is not saved; after a restart without the API server the \
                 agent would know an older one or none"
            );
        }
    }
}

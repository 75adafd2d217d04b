//! Plain counters of the sources, for whoever exports metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the sources have done so far. All values start at zero and, except for the
/// gauges named so, only grow. Reading one takes no lock.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lists that were begun: the first one of each kind and every one after it.
    lists: AtomicU64,
    /// Failed requests to the API server, broken watches included.
    watch_errors: AtomicU64,
    /// Objects that arrived with something wrong in them. The usable rest was taken.
    rejected_objects: AtomicU64,
    /// Documents and files of the manifests directory that were found bad.
    manifest_errors: AtomicU64,
    /// States that were published.
    published: AtomicU64,
    /// Milliseconds since the Unix epoch of the last event; 0 before the first.
    last_event: AtomicU64,
    /// Milliseconds since the Unix epoch since when requests fail; 0 while none does.
    failing_since: AtomicU64,
}

impl Counters {
    /// Lists that were begun: the first one of each kind, and every one after it.
    #[must_use]
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// Failed requests to the API server, broken watches included.
    #[must_use]
    pub fn watch_errors(&self) -> u64 {
        self.watch_errors.load(Ordering::Relaxed)
    }

    /// Objects that arrived with something wrong in them; an object counts again
    /// each time it arrives.
    #[must_use]
    pub fn rejected_objects(&self) -> u64 {
        self.rejected_objects.load(Ordering::Relaxed)
    }

    /// Errors found while reading manifests; a document counts again each time it is read.
    #[must_use]
    pub fn manifest_errors(&self) -> u64 {
        self.manifest_errors.load(Ordering::Relaxed)
    }

    /// States that were published.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// When the last event of the API server or change of a manifest was taken in;
    /// none before the first.
    #[must_use]
    pub fn last_event(&self) -> Option<SystemTime> {
        at(self.last_event.load(Ordering::Relaxed))
    }

    /// Gauge: since when requests to the API server fail; none while they don't.
    ///
    /// A watch that is silent and unbroken counts as working.
    #[must_use]
    pub fn failing_since(&self) -> Option<SystemTime> {
        at(self.failing_since.load(Ordering::Relaxed))
    }

    pub(crate) fn add_list(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_watch_error(&self) {
        self.watch_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_rejected_object(&self) {
        self.rejected_objects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_manifest_errors(&self, count: usize) {
        self.manifest_errors
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_event(&self) {
        self.last_event.store(now_millis(), Ordering::Relaxed);
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        let since = if failing { now_millis() } else { 0 };
        self.failing_since.store(since, Ordering::Relaxed);
    }
}

fn at(millis: u64) -> Option<SystemTime> {
    (millis != 0).then(|| UNIX_EPOCH + Duration::from_millis(millis))
}

fn now_millis() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

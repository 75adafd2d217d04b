//! Which files of the directory were touched, as inotify says.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};

use super::directory::is_manifest;

/// Watches a directory while it lives.
#[derive(Debug)]
pub(crate) struct Changes {
    pending: Arc<Pending>,
    _watcher: RecommendedWatcher,
}

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// These files.
    Files(BTreeSet<OsString>),
    /// More than single files: a link that others lead through, the directory itself, or
    /// so much that the kernel lost count.
    Everything,
}

#[derive(Debug)]
struct Pending {
    touched: Mutex<Due>,
    wake: Notify,
}

/// What was touched, and when to look at it.
#[derive(Debug)]
struct Due {
    directory: PathBuf,
    everything: Option<Instant>,
    files: BTreeMap<OsString, Instant>,
}

/// A new name may be a link to a finished file, or a file about to be written, whose
/// writer is given a moment.
const CREATED: Duration = Duration::from_millis(50);

impl Changes {
    /// Begins to watch `directory`, not what is below it.
    ///
    /// # Errors
    ///
    /// No inotify, or no watch to spare.
    pub(crate) fn of(directory: &Path) -> notify::Result<Self> {
        let pending = Arc::new(Pending {
            touched: Mutex::new(Due::of(directory)),
            wake: Notify::new(),
        });
        let noted = pending.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            noted.note(event, Instant::now());
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self {
            pending,
            _watcher: watcher,
        })
    }

    /// Waits until something has to be looked at. Dropping the future loses nothing.
    pub(crate) async fn next(&self) -> Touched {
        loop {
            let woken = self.pending.wake.notified();
            let first = self.pending.lock().first();
            match first {
                None => woken.await,
                Some(at) if at > Instant::now() => tokio::select! {
                    () = woken => {}
                    () = sleep_until(at.into()) => {}
                },
                Some(_) => {
                    // Events of one action come in one go; this lets them.
                    sleep(Duration::from_millis(1)).await;
                    return self.pending.lock().take(Instant::now());
                }
            }
        }
    }
}

impl Pending {
    fn note(&self, event: notify::Result<Event>, now: Instant) {
        self.lock().note(event, now);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        match self.touched.lock() {
            Ok(due) => due,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

impl Due {
    fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            everything: None,
            files: BTreeMap::new(),
        }
    }

    fn first(&self) -> Option<Instant> {
        self.files.values().chain(&self.everything).min().copied()
    }

    fn take(&mut self, now: Instant) -> Touched {
        if self.everything.take_if(|at| *at <= now).is_some() {
            self.files.clear();
            return Touched::Everything;
        }
        let later = self
            .files
            .extract_if(.., |_, at| *at <= now)
            .map(|(name, _)| name)
            .collect();
        Touched::Files(later)
    }

    fn note(&mut self, event: notify::Result<Event>, now: Instant) {
        let Ok(event) = event else {
            self.everything = Some(now);
            return;
        };
        if event.need_rescan() {
            self.everything = Some(now);
            return;
        }
        let Some(delay) = delay(&event.kind) else {
            return;
        };
        let at = now + delay;
        for path in &event.paths {
            let due = match path.file_name() {
                Some(name) if is_manifest(name) => self.files.entry(name.to_owned()).or_insert(at),
                _ if self.concerns_all(path) => self.everything.get_or_insert(at),
                Some(_) | None => continue,
            };
            *due = at.min(*due);
        }
    }

    /// The directory itself, or what the links of a ConfigMap volume lead through
    /// (`..data`; kubernetes `pkg/volume/util/atomic_writer.go`). Other names that are
    /// no manifests are somebody's temporary files.
    fn concerns_all(&self, path: &Path) -> bool {
        path == self.directory
            || path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
    }
}

/// How long after an event to look; none when it says nothing.
///
/// A file that is being written is left alone until its writer closes it: half a
/// manifest may well be valid, and would take away the other half's Services.
fn delay(kind: &EventKind) -> Option<Duration> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_)
        | EventKind::Any
        | EventKind::Other => Some(Duration::ZERO),
        EventKind::Create(_) => Some(CREATED),
        // Permissions, which may make a file readable.
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(CREATED),
        EventKind::Modify(ModifyKind::Any | ModifyKind::Data(_) | ModifyKind::Other)
        | EventKind::Access(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind, RenameMode};

    use super::*;

    fn due() -> Due {
        Due::of(Path::new("/m"))
    }

    fn event(kind: EventKind, path: &str) -> notify::Result<Event> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    fn names(names: &[&str]) -> Touched {
        Touched::Files(names.iter().map(OsString::from).collect())
    }

    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));

    #[test]
    fn file_being_written_is_left_alone_until_it_is_closed() {
        let (mut due, now) = (due(), Instant::now());
        due.note(event(WRITTEN, "/m/a.yaml"), now);
        assert_eq!(due.first(), None);
        due.note(event(CLOSED, "/m/a.yaml"), now);
        assert_eq!(due.first(), Some(now));
        assert_eq!(due.take(now), names(&["a.yaml"]));
        assert_eq!(due.first(), None);
    }

    #[test]
    fn created_file_is_given_a_moment_and_closing_it_ends_that() {
        let (mut due, now) = (due(), Instant::now());
        due.note(event(EventKind::Create(CreateKind::File), "/m/a.yaml"), now);
        assert_eq!(due.first(), Some(now + CREATED));
        assert_eq!(due.take(now), names(&[]));
        due.note(event(CLOSED, "/m/a.yaml"), now);
        assert_eq!(due.take(now), names(&["a.yaml"]));
    }

    #[test]
    fn renamed_and_removed_files_are_looked_at() {
        let (mut due, now) = (due(), Instant::now());
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        due.note(event(renamed, "/m/a.yaml"), now);
        due.note(event(EventKind::Remove(RemoveKind::File), "/m/b.yaml"), now);
        assert_eq!(due.take(now), names(&["a.yaml", "b.yaml"]));
    }

    #[test]
    fn swapped_link_and_the_directory_itself_concern_everything() {
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        for path in ["/m/..data", "/m"] {
            let (mut due, now) = (due(), Instant::now());
            due.note(event(CLOSED, "/m/a.yaml"), now);
            due.note(event(renamed, path), now);
            assert_eq!(due.take(now), Touched::Everything);
            assert_eq!(due.first(), None, "the file is part of everything");
        }
    }

    #[test]
    fn lost_events_concern_everything() {
        let now = Instant::now();
        let lost = Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan));
        for event in [lost, Err(notify::Error::generic("trouble"))] {
            let mut due = due();
            due.note(event, now);
            assert_eq!(due.take(now), Touched::Everything);
        }
    }

    #[test]
    fn temporary_files_and_reading_say_nothing() {
        let (mut due, now) = (due(), Instant::now());
        due.note(event(CLOSED, "/m/a.yaml.tmp"), now);
        due.note(event(CLOSED, "/m/.a.yaml"), now);
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        due.note(event(opened, "/m/a.yaml"), now);
        assert_eq!(due.first(), None);
    }

    #[test]
    fn permissions_may_make_a_file_readable() {
        let (mut due, now) = (due(), Instant::now());
        let permissions = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        due.note(event(permissions, "/m/a.yaml"), now);
        assert_eq!(due.take(now + CREATED), names(&["a.yaml"]));
    }
}

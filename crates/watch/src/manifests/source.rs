//! The loop that keeps the catalog as the directory has it.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::changes::{Changes, Touched};
use super::directory::{Directory, Eagerness};
use super::error::ManifestsError;
use crate::counters::Counters;
use crate::publisher::Publisher;
use crate::state::{Origin, Problems, SourceState};

/// Changes within this time of a publication are published together.
const COALESCE: Duration = Duration::from_millis(20);

/// How often to look at every file, whatever inotify says: it knows nothing of network
/// file systems, nor of files that links lead to.
const POLL: Duration = Duration::from_secs(30);

/// How often to look for a directory that is gone.
const POLL_FOR_DIRECTORY: Duration = Duration::from_secs(1);

/// A directory of ordinary Kubernetes manifests as the source of the catalog.
///
/// Services, EndpointSlices, Endpoints, Nodes, MeshNodes and lists of these are read from all
/// `*.yaml`, `*.yml` and `*.json` files in it, not from hidden ones nor from
/// directories below. A file is read again when its writer closes it, when it is
/// renamed or replaced, and when a link on the way to it changes. While a file has an
/// error, what it said before stays in force.
#[derive(Debug)]
pub struct ManifestsSource {
    path: PathBuf,
    publisher: Publisher,
    counters: Arc<Counters>,
    node_labels: Arc<[Arc<str>]>,
}

impl ManifestsSource {
    /// A source that has not begun yet, and the channel on which it publishes.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. That it is gone later is no error: what it said
    /// stays in force.
    pub fn new(
        directory: PathBuf,
        counters: Arc<Counters>,
    ) -> Result<(Self, watch::Receiver<SourceState>), ManifestsError> {
        if let Err(source) = fs::read_dir(&directory) {
            return Err(ManifestsError::Directory {
                path: directory,
                source,
            });
        }
        let (publisher, states) = Publisher::new(COALESCE, counters.clone());
        let source = Self {
            path: directory,
            publisher,
            counters,
            node_labels: Arc::default(),
        };
        Ok((source, states))
    }

    /// Keeps these labels of Nodes; by default none.
    #[must_use]
    pub fn keeping_node_labels(self, labels: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            node_labels: labels.into_iter().collect(),
            ..self
        }
    }

    /// Works until `shutdown`. Dropping the future stops it just as well.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut running = Running::new(self);
        if let Some(never) = shutdown.run_until_cancelled(running.work()).await {
            match never {}
        }
    }
}

struct Running {
    path: PathBuf,
    publisher: Publisher,
    counters: Arc<Counters>,
    node_labels: Arc<[Arc<str>]>,
    /// None while a blocking thread works on it.
    directory: Option<Directory>,
    watched: Option<Watched>,
    /// Whether the directory could not be listed last time.
    is_lost: bool,
    /// Whether it was said that changes are found by looking only.
    said_polling: bool,
}

/// The directory that inotify watches: the path may lead to another one later.
struct Watched {
    changes: Changes,
    identity: (u64, u64),
}

impl Running {
    fn new(source: ManifestsSource) -> Self {
        let ManifestsSource {
            path,
            publisher,
            counters,
            node_labels,
        } = source;
        let directory = Directory::new(path.clone(), counters.clone());
        Self {
            directory: Some(directory.keeping_node_labels(Arc::clone(&node_labels))),
            node_labels,
            path,
            publisher,
            counters,
            watched: None,
            is_lost: false,
            said_polling: false,
        }
    }

    async fn work(&mut self) -> Infallible {
        // Watched before it is read: nothing can happen in between.
        self.watch_directory();
        self.rescan(Eagerness::All).await;
        let mut poll_at = self.next_poll();
        loop {
            tokio::select! {
                touched = next_change(self.watched.as_ref()) => {
                    match touched {
                        Touched::Files(names) => {
                            let changed = self.blocking(move |dir| dir.read(&names)).await;
                            self.after(changed);
                        }
                        Touched::Everything => {
                            self.watch_directory();
                            self.rescan(Eagerness::All).await;
                        }
                    }
                    if self.is_lost {
                        poll_at = poll_at.min(self.next_poll());
                    }
                }
                () = sleep_until(poll_at) => {
                    // A directory that is back is read at once.
                    let eagerness = if self.watch_directory() {
                        Eagerness::All
                    } else {
                        Eagerness::Settled
                    };
                    self.rescan(eagerness).await;
                    poll_at = self.next_poll();
                }
                () = self.publisher.due() => self.publish(),
            }
        }
    }

    fn next_poll(&self) -> Instant {
        Instant::now()
            + if self.is_lost {
                POLL_FOR_DIRECTORY
            } else {
                POLL
            }
    }

    /// Makes sure that inotify watches the directory that the path leads to now.
    /// Returns whether it is another one than before.
    fn watch_directory(&mut self) -> bool {
        let Ok(metadata) = fs::metadata(&self.path) else {
            self.watched = None;
            return false;
        };
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().map(|w| w.identity) == Some(identity) {
            return false;
        }
        self.watched = match Changes::of(&self.path) {
            Ok(changes) => Some(Watched { changes, identity }),
            Err(error) => {
                if !std::mem::replace(&mut self.said_polling, true) {
                    warn!(
                        directory = %self.path.display(), %error, every_s = POLL.as_secs(),
                        "cannot watch the manifests directory; looking at it from time to time \
                         instead. Raise fs.inotify.max_user_instances and max_user_watches"
                    );
                }
                None
            }
        };
        true
    }

    async fn rescan(&mut self, eagerness: Eagerness) {
        match self.blocking(move |dir| dir.rescan(eagerness)).await {
            Ok(changed) => {
                if std::mem::take(&mut self.is_lost) {
                    info!(directory = %self.path.display(), "the manifests directory is back");
                }
                self.after(changed);
            }
            Err(error) => self.note_lost(&error),
        }
    }

    fn note_lost(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_lost, true) {
            warn!(
                directory = %self.path.display(), %error,
                "cannot read the manifests directory; what it said last stays in force"
            );
        }
    }

    /// Works on the directory where blocking harms nobody.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Directory) -> T + Send + 'static,
    ) -> T {
        let mut directory = match self.directory.take() {
            Some(directory) => directory,
            None => Directory::new(self.path.clone(), self.counters.clone())
                .keeping_node_labels(Arc::clone(&self.node_labels)),
        };
        let done = spawn_blocking(move || {
            let result = work(&mut directory);
            (directory, result)
        });
        match done.await {
            Ok((directory, result)) => {
                self.directory = Some(directory);
                result
            }
            Err(error) => match error.try_into_panic() {
                // This task's owner is to know of it.
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn after(&mut self, changed: bool) {
        self.counters.note_event();
        let problems = self.problems();
        let seen = {
            let current = self.publisher.current();
            (current.complete, current.problems)
        };
        if !seen.0 {
            self.publish();
            let catalog = self.publisher.current().catalog.clone();
            info!(
                directory = %self.path.display(),
                services = catalog.services().count(),
                slices = catalog.slices().count(),
                nodes = catalog.nodes().count(),
                files_with_errors = problems.files,
                "the manifests directory is read"
            );
        } else if changed || seen.1 != problems {
            self.publisher.changed();
        }
    }

    fn problems(&self) -> Problems {
        Problems {
            objects: 0,
            files: self
                .directory
                .as_ref()
                .map_or(0, Directory::files_with_errors),
        }
    }

    fn publish(&mut self) {
        let Some(directory) = &self.directory else {
            return;
        };
        let state = SourceState {
            catalog: directory.catalog(),
            complete: true,
            origin: Origin::Manifests,
            problems: self.problems(),
        };
        self.publisher.publish(state);
    }
}

async fn next_change(watched: Option<&Watched>) -> Touched {
    match watched {
        Some(watched) => watched.changes.next().await,
        None => std::future::pending().await,
    }
}

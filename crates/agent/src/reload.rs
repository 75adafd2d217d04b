//! When the configuration is to be read again: on SIGHUP, or because its file changed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the file is looked at. A look is one `stat`; it follows the symbolic
/// links that a ConfigMap volume swaps, and works on file systems that notify nobody.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits for reasons to read a configuration file again.
pub(crate) struct Reload {
    path: PathBuf,
    hangup: Signal,
    look: Interval,
    seen: Option<Identity>,
}

/// Why the configuration is to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// SIGHUP.
    Asked,
    /// The file is not the one that was read.
    FileChanged,
}

/// Tells one content of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Reload {
    /// Watches `path`, taking what is there now as known.
    ///
    /// # Errors
    ///
    /// When the handler for SIGHUP cannot be installed.
    pub(crate) fn watch(path: &Path) -> anyhow::Result<Self> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            path: path.to_owned(),
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
            look,
            seen: identity(path).ok(),
        })
    }

    /// Waits for the next reason.
    pub(crate) async fn next(&mut self) -> Reason {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    self.seen = identity(&self.path).ok().or(self.seen);
                    return Reason::Asked;
                }
                _ = self.look.tick() => {
                    // A file that is away for the moment of its replacement is no change.
                    let Ok(now) = identity(&self.path) else { continue };
                    if self.seen.replace(now) != Some(now) {
                        return Reason::FileChanged;
                    }
                }
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = std::fs::metadata(path)?;
    Ok(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn file_replaced_by_a_symlink_swap_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for (version, text) in [("v1", "a"), ("v2", "b")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("agent.yaml"), text).unwrap();
        }
        let link = |version: &str| {
            let fresh = dir.path().join("fresh");
            std::os::unix::fs::symlink(version, &fresh).unwrap();
            fs::rename(&fresh, dir.path().join("..data")).unwrap();
        };
        link("v1");
        let path = dir.path().join("..data/agent.yaml");
        let mut reload = Reload::watch(&path).unwrap();
        link("v2");
        assert_eq!(reload.next().await, Reason::FileChanged);
    }

    #[tokio::test(start_paused = true)]
    async fn untouched_or_missing_file_is_no_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        fs::write(&path, "a").unwrap();
        let mut reload = Reload::watch(&path).unwrap();
        let quiet = tokio::time::timeout(10 * LOOK_EVERY, reload.next()).await;
        assert!(quiet.is_err());
        fs::remove_file(&path).unwrap();
        let quiet = tokio::time::timeout(10 * LOOK_EVERY, reload.next()).await;
        assert!(quiet.is_err());
    }
}

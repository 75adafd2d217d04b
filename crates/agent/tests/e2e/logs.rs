//! The logs of one cluster: shown and kept when its scenario fails.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// How much of each log a failure shows.
const SHOWN_LINES: usize = 40;

/// A folder of logs outside the lab, which would take them down with it.
#[derive(Debug)]
pub(crate) struct Logs {
    folder: Option<TempDir>,
}

impl Logs {
    /// A new folder below the usual one for temporary files.
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("edgemesh-e2e.")
            .tempdir()
            .context("cannot make a folder for logs")?;
        Ok(Self {
            folder: Some(folder),
        })
    }

    /// Where logs are to be written.
    pub(crate) fn folder(&self) -> Result<&Path> {
        self.folder
            .as_ref()
            .map(TempDir::path)
            .context("the logs are gone")
    }

    /// The scenario passed: nobody needs them.
    pub(crate) fn discard(mut self) {
        self.folder = None;
    }
}

impl Drop for Logs {
    /// A panic comes this way, too.
    fn drop(&mut self) {
        let Some(folder) = self.folder.take() else {
            return;
        };
        let folder = folder.keep();
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        // The agent's own stands last, nearest to the error.
        paths.sort_by_key(|path| path.ends_with("agent.log"));
        for path in paths {
            show_tail(&path);
        }
        show(&format!("\nall logs are kept in {}", folder.display()));
    }
}

fn show_tail(path: &Path) {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    show(&format!("\n-- the end of {}", path.display()));
    show(&tail.join("\n"));
}

/// Says something to whoever runs the test.
#[expect(
    clippy::print_stdout,
    reason = "what was measured is what this test is run for"
)]
pub(crate) fn show(text: &str) {
    println!("{text}");
}

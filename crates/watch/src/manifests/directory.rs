//! The files of the directory, and what their last good content adds up to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgemesh_catalog::Catalog;
use tracing::{debug, info, warn};

use super::content::{Content, read_content};
use super::error::ManifestError;
use super::overlay::{FileName, Overlay};
use crate::counters::Counters;
use crate::objects::KnownNames;

/// A directory of manifests, as far as it was read. Its methods block on disk I/O.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    overlay: Overlay,
    names: KnownNames,
    files: BTreeMap<FileName, Loaded>,
    counters: Arc<Counters>,
}

/// What is known of one file.
#[derive(Debug)]
struct Loaded {
    stamp: Option<Stamp>,
    /// Whether it was ever wholly right. From then on its content is replaced only by
    /// content that is wholly right again.
    was_right: bool,
    errors: Vec<ManifestError>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Which of the files with a new stamp to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eagerness {
    /// All of them.
    All,
    /// Those that were not written to just now: somebody may be at it still, and will
    /// be noticed when done.
    Settled,
}

/// How long ago a file must have been written to count as settled.
const SETTLED: Duration = Duration::from_secs(2);

/// At most this many errors of one file are logged.
const LOGGED_ERRORS: usize = 20;

impl Directory {
    pub(crate) fn new(path: PathBuf, counters: Arc<Counters>) -> Self {
        Self {
            path,
            overlay: Overlay::default(),
            names: KnownNames::default(),
            files: BTreeMap::new(),
            counters,
        }
    }

    /// Keeps these labels of the Nodes that are read from now on.
    pub(crate) fn keeping_node_labels(mut self, labels: Arc<[Arc<str>]>) -> Self {
        self.names.keep_node_labels(labels);
        self
    }

    /// What the files say.
    pub(crate) fn catalog(&self) -> Catalog {
        self.overlay.catalog()
    }

    /// How many files have errors.
    pub(crate) fn files_with_errors(&self) -> usize {
        self.files
            .values()
            .filter(|file| !file.errors.is_empty())
            .count()
    }

    /// Looks at every file and reads those that changed. Returns whether the catalog did.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed; everything then stays as it was.
    pub(crate) fn rescan(&mut self, eagerness: Eagerness) -> io::Result<bool> {
        let present = list(&self.path)?;
        let gone: Vec<FileName> = self
            .files
            .keys()
            .filter(|name| !present.contains(name.as_ref()))
            .cloned()
            .collect();
        let mut changed = false;
        for name in &gone {
            changed |= self.forget(name);
        }
        for name in present {
            if self.is_worth_reading(&name, eagerness) {
                changed |= self.read_again(&name);
            }
        }
        if changed {
            self.pack();
        }
        Ok(changed)
    }

    /// Files are read in the order of their names, which leaves maps half empty.
    fn pack(&mut self) {
        self.overlay.pack();
        self.names.pack();
        self.files = std::mem::take(&mut self.files).into_iter().collect();
    }

    /// Reads these files again, whether they seem changed or not. Returns whether the
    /// catalog is different.
    pub(crate) fn read(&mut self, names: &BTreeSet<OsString>) -> bool {
        names
            .iter()
            .filter(|name| is_manifest(name))
            .fold(false, |changed, name| self.read_again(name) | changed)
    }

    fn is_worth_reading(&self, name: &OsStr, eagerness: Eagerness) -> bool {
        let Ok(metadata) = fs::metadata(self.path.join(name)) else {
            // Reading it will tell why.
            return true;
        };
        let known = self.files.get(name).and_then(|file| file.stamp);
        if known == Some(Stamp::of(&metadata)) {
            return false;
        }
        match eagerness {
            Eagerness::All => true,
            Eagerness::Settled => metadata
                .modified()
                .ok()
                .and_then(|at| SystemTime::now().duration_since(at).ok())
                // A time in the future says nothing.
                .is_none_or(|age| age >= SETTLED),
        }
    }

    fn read_again(&mut self, name: &OsStr) -> bool {
        let path = self.path.join(name);
        let name: FileName = match self.files.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => name.into(),
        };
        match read_file(&path) {
            Ok(Some((stamp, bytes))) => {
                let content = read_content(&path, &bytes, &mut self.names);
                self.take(&path, &name, stamp, content)
            }
            Ok(None) => self.forget(&name),
            Err(error) => {
                self.note_unreadable(&path, &name, &error);
                false
            }
        }
    }

    fn take(&mut self, path: &Path, name: &FileName, stamp: Stamp, content: Content) -> bool {
        let known = self.files.get(name);
        let was_right = known.is_some_and(|file| file.was_right);
        let had_errors = known.is_some_and(|file| !file.errors.is_empty());
        let is_right = content.errors.is_empty();
        let (objects, errors) = (content.objects, content.errors);
        if is_right && had_errors {
            info!(file = %path.display(), "the file is in order again");
        }
        self.log_errors(path, &errors, was_right);
        debug!(file = %path.display(), objects = objects.len(), errors = errors.len(), "read");
        self.files.insert(
            name.clone(),
            Loaded {
                stamp: Some(stamp),
                was_right: was_right || is_right,
                errors,
            },
        );
        if was_right && !is_right {
            return false;
        }
        let effect = self.overlay.put_file(name, objects);
        for conflict in &effect.conflicts {
            warn!(
                kind = conflict.object.kind.as_str(),
                object = %conflict.object.name,
                "is in two files: {} has it, its copy in {} is not used; remove one of them",
                conflict.winner.display(),
                conflict.loser.display(),
            );
        }
        effect.changed
    }

    fn log_errors(&self, path: &Path, errors: &[ManifestError], was_right: bool) {
        self.counters.add_manifest_errors(errors.len());
        for error in errors.iter().take(LOGGED_ERRORS) {
            warn!("{error}");
        }
        if !errors.is_empty() {
            warn!(
                file = %path.display(), errors = errors.len(),
                "{}",
                if was_right {
                    "the file has errors: what it said when it was last in order stays in force"
                } else {
                    "the file has errors: what is usable of it is in force"
                }
            );
        }
    }

    /// A file that is there and cannot be read keeps its last good content.
    fn note_unreadable(&mut self, path: &Path, name: &FileName, error: &io::Error) {
        let file = self.files.entry(name.clone()).or_insert(Loaded {
            stamp: None,
            was_right: false,
            errors: Vec::new(),
        });
        file.stamp = None;
        let error = ManifestError {
            path: path.to_owned(),
            document: 1,
            line: 1,
            field: String::new(),
            message: format!("cannot be read ({error}); check the file's permissions"),
        };
        if file.errors.last() != Some(&error) {
            warn!("{error}");
            self.counters.add_manifest_errors(1);
            file.errors = vec![error];
        }
    }

    fn forget(&mut self, name: &FileName) -> bool {
        if self.files.remove(name).is_some() {
            debug!(file = %name.display(), "the file is gone");
        }
        self.overlay.remove_file(name)
    }
}

/// Names of the manifests in a directory.
fn list(path: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if is_manifest(&name) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Whether a file is to be read, by its name: `*.yaml`, `*.yml` and `*.json` that are
/// not hidden.
pub(crate) fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = Path::new(name).extension();
    !hidden && extension.is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// A file's content; none when there is no such file (any more).
fn read_file(path: &Path) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    // Asked before it is opened: opening a named pipe would wait for a writer.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Taken before reading: what is written from now on makes another stamp.
    let stamp = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some((stamp, bytes)))
}

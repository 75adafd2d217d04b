//! The file that holds the last good catalog.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use edgemesh_catalog::Catalog;

use super::LastGood;
use super::format::{self, FormatError, VERSION};

/// The last good catalog on disk: one file in a directory of the agent's own.
#[derive(Clone, Debug)]
pub struct LastGoodFile {
    path: PathBuf,
}

/// What can go wrong with the last good catalog. None of it keeps the agent from
/// working; it only starts without, or goes on without saving.
#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    /// The file is not what was written. It was set aside for whoever wants to look.
    #[error(
        "the last good catalog {path} is damaged ({reason}); it was set aside as {aside}, the \
         agent starts without it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// Where it is now.
        aside: PathBuf,
    },
    /// A newer agent wrote the file. It is left alone until the next save replaces it.
    #[error(
        "the last good catalog {path} has version {version}, this agent knows version {VERSION}; \
         the agent starts without it"
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file system refused.
    #[error("cannot {doing} {path}; check the state directory's file system and permissions")]
    Io {
        /// What was tried: "read", "write".
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LastGoodFile {
    /// The file `catalog` in `state_dir` (default `/var/lib/edgemesh`).
    #[must_use]
    pub fn in_dir(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("catalog"),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the catalog; none when there is no file. Blocks on disk I/O.
    ///
    /// # Errors
    ///
    /// A damaged file (set aside as `catalog.damaged-N`), one of an unknown version
    /// (left alone), or a file system that refuses.
    pub fn load(&self) -> Result<Option<LastGood>, LastGoodError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io_error("read", source)),
        };
        match read(file) {
            Ok(last_good) => Ok(Some(last_good)),
            Err(FormatError::UnknownVersion(version)) => Err(LastGoodError::UnknownVersion {
                path: self.path.clone(),
                version,
            }),
            // Not the content's fault: a file that cannot be read may be fine.
            Err(FormatError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
                Err(self.io_error("read", source))
            }
            Err(error) => Err(self.set_aside(error.to_string())),
        }
    }

    /// Replaces the file. Whoever crashes in between, or loses power, finds the old
    /// catalog or the new one. Blocks on disk I/O.
    ///
    /// # Errors
    ///
    /// A file system that refuses.
    pub fn save(&self, catalog: &Catalog, now: SystemTime) -> Result<(), LastGoodError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| LastGoodError::Io {
                doing: "create",
                path: dir.to_owned(),
                source,
            })?;
        let temporary = self.path.with_extension("new");
        write_file(catalog, now, &temporary)
            .and_then(|()| fs::rename(&temporary, &self.path))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|source| {
                // Half a file helps nobody and may be what filled the disk.
                let _ = fs::remove_file(&temporary);
                self.io_error("write", source)
            })
    }

    fn set_aside(&self, reason: String) -> LastGoodError {
        let aside = (1..)
            .map(|number: u32| self.path.with_extension(format!("damaged-{number}")))
            // Enough to look at; a disk that damages every file must not be filled.
            .find(|aside| !aside.exists() || aside.ends_with("catalog.damaged-9"))
            .unwrap_or_else(|| self.path.with_extension("damaged"));
        match fs::rename(&self.path, &aside) {
            Ok(()) => LastGoodError::Damaged {
                path: self.path.clone(),
                reason,
                aside,
            },
            Err(source) => self.io_error("set aside the damaged", source),
        }
    }

    fn io_error(&self, doing: &'static str, source: io::Error) -> LastGoodError {
        LastGoodError::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }
}

fn read(mut file: File) -> Result<LastGood, FormatError> {
    let length = file.metadata()?.len();
    format::verify(&file, length)?;
    file.seek(SeekFrom::Start(0))?;
    format::read(BufReader::new(file))
}

fn write_file(catalog: &Catalog, now: SystemTime, path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // The mode above counts only for a file that was not there.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let mut buffered = BufWriter::new(file);
    format::write(catalog, now, &mut buffered)?;
    buffered.into_inner()?.sync_all()
}

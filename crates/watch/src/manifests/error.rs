//! What can be wrong with a manifest, and where.

use std::io;
use std::path::PathBuf;

/// A mistake in a manifest, down to the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub path: PathBuf,
    /// Which document of the file, counted from 1; empty ones don't count.
    pub document: usize,
    /// The line of the file, counted from 1.
    pub line: usize,
    /// The field, as `spec.ports[0].port`; empty when the document as a whole is meant.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            path,
            document,
            line,
            field,
            message,
        } = self;
        write!(f, "{}:{line} (document {document}): ", path.display())?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        f.write_str(message)
    }
}

impl std::error::Error for ManifestError {}

/// Why a manifests directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// It is not there, no directory, or not readable.
    #[error("cannot read the manifests directory {path}; create it or correct --manifests")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

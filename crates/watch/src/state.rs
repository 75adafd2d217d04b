//! What a source publishes.

use std::fmt;
use std::time::SystemTime;

use edgemesh_catalog::Catalog;

/// The catalog as a source knows it right now.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// What the cluster says. Meaningless until [`SourceState::complete`].
    pub catalog: Catalog,
    /// Whether the catalog is whole: every list was read at least once, or a whole
    /// catalog was loaded from disk. It never becomes false again. Nothing should be
    /// programmed before it is true: a half-read catalog looks like deleted Services.
    pub complete: bool,
    /// Where the catalog comes from.
    pub origin: Origin,
    /// How much of what was read is not in order.
    pub problems: Problems,
}

/// Where a catalog comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was read yet.
    #[default]
    Nothing,
    /// The Kubernetes API (or KubeEdge's metaServer).
    Api,
    /// The manifests directory.
    Manifests,
    /// The last good catalog on disk, while the API server cannot be reached.
    LastGood {
        /// When it was saved.
        saved_at: SystemTime,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Nothing => "nothing yet",
            Origin::Api => "the Kubernetes API",
            Origin::Manifests => "the manifests directory",
            Origin::LastGood { .. } => "the last good catalog on disk",
        })
    }
}

/// How much of what a source read is not in order, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Objects with something wrong in them, whose usable rest is in the catalog.
    pub objects: usize,
    /// Manifest files with errors, of which older or partial content is in force.
    pub files: usize,
}

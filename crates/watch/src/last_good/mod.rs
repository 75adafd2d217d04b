//! The last good catalog on disk.

mod file;
mod format;
mod saver;

#[cfg(test)]
mod tests;

pub use file::{LastGoodError, LastGoodFile};
pub use saver::LastGoodSaver;

use std::time::SystemTime;

use edgemesh_catalog::Catalog;

/// A catalog that was saved earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood {
    /// What the cluster said.
    pub catalog: Catalog,
    /// When it was saved, to the second.
    pub saved_at: SystemTime,
}

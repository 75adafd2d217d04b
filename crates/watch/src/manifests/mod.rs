//! A directory of manifests as a source of the catalog.

mod changes;
mod content;
mod directory;
mod error;
mod overlay;
mod source;

pub use error::{ManifestError, ManifestsError};
pub use source::ManifestsSource;

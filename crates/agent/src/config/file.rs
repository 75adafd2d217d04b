//! The configuration file on disk.

use std::path::Path;

use anyhow::Context;

use super::parse::{Parsed, parse};

/// Reads and checks a configuration file.
///
/// # Errors
///
/// When it cannot be read, or with every mistake in it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Parsed> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "read the configuration file {}: see that it is there and readable, name another by \
             --config, or leave --config out for the defaults",
            path.display()
        )
    })?;
    Ok(parse(&text, &path.display().to_string())?)
}

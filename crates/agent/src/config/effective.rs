//! A configuration as its keys have it: shown, and compared with another.

use std::fmt;

use super::key::{Reload, Role};
use super::keys;
use super::settings::Config;

impl Config {
    /// The keys whose values differ in `new` and that take effect only at the next start,
    /// in the order of the reference.
    #[must_use]
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        keys::all()
            .filter_map(|key| match &key.role {
                Role::Honoured {
                    same,
                    reload: Reload::Restart,
                    ..
                } => (!same(self, new)).then_some(key.path),
                Role::Honoured {
                    reload: Reload::Live,
                    ..
                }
                | Role::NotHonoured { .. } => None,
            })
            .collect()
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<&str> = Vec::new();
        for key in keys::all() {
            let Role::Honoured { show, .. } = &key.role else {
                continue;
            };
            let mut sections: Vec<&str> = key.path.split('.').collect();
            let name = sections.pop().unwrap_or_default();
            let shared = open
                .iter()
                .zip(&sections)
                .take_while(|(a, b)| a == b)
                .count();
            for (depth, section) in sections.iter().enumerate().skip(shared) {
                writeln!(f, "{}{section}:", "  ".repeat(depth))?;
            }
            writeln!(f, "{}{name}: {}", "  ".repeat(sections.len()), show(self))?;
            open = sections;
        }
        Ok(())
    }
}

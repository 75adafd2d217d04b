//! What there is to know about one key of the file.

use edgemesh_yaml::Node;

use super::findings::Report;
use super::settings::Config;

/// Why a key is not honoured that EdgeMesh sets itself and asks not to be configured.
pub(super) const FOUND_OUT: &str = "the agent finds this out by itself";

/// One key. Entries are written with the macros [`honoured!`] and [`not_honoured!`].
pub(super) struct Key {
    /// The key with those above it, as `modules.edgeProxy.listenPort`.
    pub(super) path: &'static str,
    /// Whose key it is.
    #[cfg_attr(not(test), allow(dead_code, reason = "for the reference page"))]
    pub(super) origin: Origin,
    /// What values it takes, as "a port, 1 to 65535".
    #[cfg_attr(not(test), allow(dead_code, reason = "for the reference page"))]
    pub(super) accepts: fn() -> String,
    /// What the agent does with it.
    pub(super) role: Role,
}

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// EdgeMesh's (`pkg/apis/config/v1alpha1/types.go`, v1.17).
    EdgeMesh,
    /// This agent's.
    Own,
}

/// What the agent does with a key.
pub(super) enum Role {
    /// It does what the key says.
    Honoured {
        /// Reads the value into the configuration, or reports what is wrong with it.
        read: fn(Node<'_>, &str, &mut Report, &mut Config),
        /// The value as YAML.
        show: fn(&Config) -> String,
        /// Whether two configurations agree on it.
        same: fn(&Config, &Config) -> bool,
        /// When a changed value takes effect.
        reload: Reload,
        /// What it is for, in Markdown.
        #[cfg_attr(not(test), allow(dead_code, reason = "for the reference page"))]
        doc: &'static str,
    },
    /// It understands the key and does something else.
    NotHonoured {
        /// The value as YAML, or none, having reported what is wrong with it.
        check: fn(Node<'_>, &str, &mut Report) -> Option<String>,
        /// EdgeMesh's default as YAML; empty if there is none.
        #[cfg_attr(not(test), allow(dead_code, reason = "for the reference page"))]
        default: &'static str,
        /// What happens instead.
        instead: &'static str,
        /// The value that asks for what happens anyway, and so needs no warning.
        harmless: Option<&'static str>,
    },
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// When the file is read again.
    Live,
    /// When the agent is started again.
    Restart,
}

/// `honoured!(origin reload "path", field = READER, "doc")`
macro_rules! honoured {
    ($origin:ident $reload:ident $path:literal, $($field:ident).+ = $reader:expr, $doc:expr) => {
        $crate::config::key::Key {
            path: $path,
            origin: $crate::config::key::Origin::$origin,
            accepts: || $crate::config::values::Reader::accepts(&$reader),
            role: $crate::config::key::Role::Honoured {
                read: |node, path, report, config| {
                    use $crate::config::values::Reader;
                    if let Some(value) = $reader.read(node, path, report) {
                        config.$($field).+ = value;
                    }
                },
                show: |config| $crate::config::values::Reader::show(&$reader, &config.$($field).+),
                same: |a, b| a.$($field).+ == b.$($field).+,
                reload: $crate::config::key::Reload::$reload,
                doc: $doc,
            },
        }
    };
}

/// `not_honoured!("path", READER, "default", "instead" [, unless "harmless value"])`
macro_rules! not_honoured {
    ($path:literal, $reader:expr, $default:literal, $instead:expr) => {
        not_honoured!(@ $path, $reader, $default, $instead, None)
    };
    ($path:literal, $reader:expr, $default:literal, $instead:expr, unless $harmless:literal) => {
        not_honoured!(@ $path, $reader, $default, $instead, Some($harmless))
    };
    (@ $path:literal, $reader:expr, $default:literal, $instead:expr, $harmless:expr) => {
        $crate::config::key::Key {
            path: $path,
            origin: $crate::config::key::Origin::EdgeMesh,
            accepts: || $crate::config::values::Reader::accepts(&$reader),
            role: $crate::config::key::Role::NotHonoured {
                check: |node, path, report| {
                    use $crate::config::values::Reader;
                    let value = $reader.read(node, path, report)?;
                    Some($reader.show(&value))
                },
                default: $default,
                instead: $instead,
                harmless: $harmless,
            },
        }
    };
}

pub(super) use {honoured, not_honoured};

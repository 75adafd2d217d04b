//! What is to be said about a file: its mistakes and the warnings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use edgemesh_yaml::{Mark, Node};

/// One mistake or warning with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file as it was named to the agent.
    pub(crate) file: Arc<str>,
    /// Where in the file.
    pub(crate) mark: Mark,
    /// The whole path of the key, as `modules.edgeProxy.listenPort`; empty if it is about
    /// the file as a whole.
    pub(crate) key: String,
    /// What is wrong and what is allowed, or what happens instead.
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.mark)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All mistakes of a file, in the order of its lines; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigErrors {
    /// The mistakes.
    pub(crate) findings: Vec<Finding>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.findings.len() {
            1 => f.write_str("the configuration has a mistake:")?,
            count => write!(f, "the configuration has {count} mistakes:")?,
        }
        (self.findings.iter()).try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// A key that means nothing where it stands.
#[derive(Debug)]
pub(super) struct UnknownKey {
    /// Where in the file.
    pub(super) mark: Mark,
    /// Its whole path.
    pub(super) key: String,
    /// The key itself.
    pub(super) name: String,
    /// The keys that mean something there.
    pub(super) known: BTreeSet<String>,
}

/// Collects what is found while a file is read.
#[derive(Debug)]
pub(super) struct Report {
    file: Arc<str>,
    pub(super) errors: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// Mistakes, too; what to say of them only the table of all keys tells.
    pub(super) unknown: Vec<UnknownKey>,
    /// Where each known key was set.
    places: BTreeMap<&'static str, Mark>,
    /// The place of the document itself.
    root: Mark,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.into(),
            errors: Vec::new(),
            warnings: Vec::new(),
            unknown: Vec::new(),
            places: BTreeMap::new(),
            root: Mark { line: 1, column: 1 },
        }
    }

    pub(super) fn error(&mut self, mark: Mark, key: &str, message: impl Into<String>) {
        let finding = self.finding(mark, key, message.into());
        self.errors.push(finding);
    }

    pub(super) fn warning(&mut self, mark: Mark, key: &str, message: impl Into<String>) {
        let finding = self.finding(mark, key, message.into());
        self.warnings.push(finding);
    }

    /// How many mistakes have been found so far.
    pub(super) fn mistakes(&self) -> usize {
        self.errors.len() + self.unknown.len()
    }

    /// Notes where the document begins.
    pub(super) fn begin(&mut self, root: Mark) {
        self.root = root;
    }

    /// Notes that the file sets a known key.
    pub(super) fn set(&mut self, key: &'static str, node: &Node<'_>) {
        self.places.insert(key, node.mark());
    }

    /// Whether the file sets `key`.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Where the file sets the first of `keys` that it sets; else where it begins.
    pub(super) fn place_of(&self, keys: &[&str]) -> Mark {
        (keys.iter().find_map(|key| self.places.get(key)).copied()).unwrap_or(self.root)
    }

    fn finding(&self, mark: Mark, key: &str, message: String) -> Finding {
        Finding {
            file: Arc::clone(&self.file),
            mark,
            key: key.to_owned(),
            message,
        }
    }
}

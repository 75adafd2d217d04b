//! Reading a text document by document.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::compose::{ALIAS_BUDGET, Composed, DuplicateKeys, compose};
use crate::error::{FieldError, ParseError};
use crate::node::{Mark, Node, Slot, Step};
use crate::scalar::Scalar;
use crate::stream::Chunks;

/// Reads every document of `text`; a key given twice is an error.
///
/// The text is read as the iterator is asked, so that only what the caller
/// keeps stays in memory.
#[must_use]
pub fn documents(text: &str) -> Documents<'_> {
    documents_with(text, DuplicateKeys::Refuse)
}

/// As [`documents`], with another way to treat a key that is given twice.
#[must_use]
pub fn documents_with(text: &str, duplicates: DuplicateKeys) -> Documents<'_> {
    Documents {
        chunks: Chunks::new(text),
        read: 0,
        alias_budget: ALIAS_BUDGET,
        duplicates,
    }
}

/// The documents of a text in order; see [`documents`].
#[derive(Debug, Clone)]
pub struct Documents<'a> {
    chunks: Chunks<'a>,
    read: usize,
    alias_budget: usize,
    duplicates: DuplicateKeys,
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let chunk = self.chunks.next()?;
            let number = self.read + 1;
            match compose(chunk, self.duplicates, &mut self.alias_budget) {
                Ok(composed) if composed.says_nothing() => {}
                Ok(Composed { slots, repeats }) => {
                    self.read = number;
                    return Some(Ok(Document {
                        number,
                        slots,
                        repeats,
                    }));
                }
                Err((mark, message)) => {
                    self.read = number;
                    return Some(Err(ParseError {
                        document: number,
                        mark,
                        message,
                    }));
                }
            }
        }
    }
}

/// A key that was given twice with the same value; see [`DuplicateKeys`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// The key with those above it, as `spec.selector`; a list's item is `[]`.
    pub path: String,
    /// Where it was given first.
    pub first: Mark,
    /// Where it was given again.
    pub again: Mark,
}

/// One document: its data and the place of each value.
#[derive(Debug, Clone)]
pub struct Document {
    number: usize,
    slots: Vec<Slot>,
    repeats: Vec<Repeat>,
}

impl Document {
    /// Which document of the text it is, counted from 1; empty ones don't
    /// count.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// The document as a value with its place.
    #[must_use]
    pub fn root(&self) -> Node<'_> {
        Node::new(&self.slots, 0)
    }

    /// The document's data without places.
    #[must_use]
    pub fn to_value(&self) -> Value {
        self.root().to_value()
    }

    /// Keys given more than once with the same value, in the order they were
    /// found. Empty unless the text was read with [`DuplicateKeys::AllowEqual`].
    #[must_use]
    pub fn repeats(&self) -> &[Repeat] {
        &self.repeats
    }

    /// Where the value at `path` begins. If there is none, where the last value
    /// on the way to it does: that is where something is missing.
    pub fn mark_of<'s>(&self, path: impl IntoIterator<Item = Step<'s>>) -> Mark {
        let mut node = self.root();
        for step in path {
            match node.step(step) {
                Some(below) => node = below,
                None => break,
            }
        }
        node.mark()
    }

    /// The line of [`Document::mark_of`].
    pub fn line_of<'s>(&self, path: impl IntoIterator<Item = Step<'s>>) -> usize {
        self.mark_of(path).line
    }

    /// The document as a `T`.
    ///
    /// # Errors
    ///
    /// The first field that doesn't fit, with its path and place.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        serde_path_to_error::deserialize(self.to_value()).map_err(|error| {
            let steps = error.path().iter().filter_map(|segment| match segment {
                Segment::Seq { index } => Some(Step::Index(*index)),
                Segment::Map { key } => Some(Step::Key(key)),
                Segment::Enum { .. } | Segment::Unknown => None,
            });
            FieldError {
                document: self.number,
                mark: self.mark_of(steps),
                path: error.path().to_string(),
                message: error.inner().to_string(),
            }
        })
    }
}

impl Composed {
    fn says_nothing(&self) -> bool {
        use crate::node::Content;
        (self.slots.first()).is_none_or(|root| root.content == Content::Scalar(Scalar::Null))
    }
}

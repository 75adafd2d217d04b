//! A value of a document together with its place.

use std::fmt;

use serde_json::{Map, Number, Value};

use crate::scalar::Scalar;

/// A place in the text. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The line, counted from 1 over the whole text (not per document).
    pub line: usize,
    /// The column, counted from 1 in characters.
    pub column: usize,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One step from a value to a value within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// The value of this key of a mapping.
    Key(&'a str),
    /// The item at this place of a sequence, counted from 0.
    Index(usize),
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// What a node holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind<'a> {
    /// `null`, `~`, or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A finite number.
    Number(&'a Number),
    /// Text, quoted or not.
    String(&'a str),
    /// See [`Node::items`].
    Sequence,
    /// See [`Node::entries`].
    Mapping,
}

impl Kind<'_> {
    /// What to call it to a person: "a number", "a list".
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Number(_) => "a number",
            Kind::String(_) => "a string",
            Kind::Sequence => "a list",
            Kind::Mapping => "a mapping",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Scalar(Scalar),
    Sequence,
    Mapping,
}

/// One node of a document in document order; its children follow it directly.
///
/// A flat list in that order costs one allocation per document instead of one
/// per collection, lets an anchor be a mere index, and its copy for an alias be
/// a copy of a range.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// The key it has in its mapping; of a sequence's items, none.
    pub(crate) key: Option<Box<str>>,
    pub(crate) key_mark: Mark,
    pub(crate) mark: Mark,
    /// How many slots the node takes, itself included.
    pub(crate) len: usize,
    /// How many levels are below it.
    pub(crate) height: usize,
    /// Not an entry of its mapping: a merge key, or a harmless repetition.
    pub(crate) hidden: bool,
    pub(crate) content: Content,
}

/// A value of a [`Document`](crate::Document) that knows where it was written.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Never empty: the node itself, then all below it.
    slots: &'a [Slot],
}

impl<'a> Node<'a> {
    /// The node that begins at `at`.
    pub(crate) fn new(slots: &'a [Slot], at: usize) -> Self {
        Self {
            slots: &slots[at..at + slots[at].len],
        }
    }

    fn slot(&self) -> &'a Slot {
        &self.slots[0]
    }

    /// What it holds.
    #[must_use]
    pub fn kind(&self) -> Kind<'a> {
        match &self.slot().content {
            Content::Sequence => Kind::Sequence,
            Content::Mapping => Kind::Mapping,
            Content::Scalar(Scalar::Null) => Kind::Null,
            Content::Scalar(Scalar::Bool(value)) => Kind::Bool(*value),
            Content::Scalar(Scalar::Number(value)) => Kind::Number(value),
            Content::Scalar(Scalar::String { text, .. }) => Kind::String(text),
        }
    }

    /// Whether it is text written without quotes, as `yes` in `enable: yes`.
    #[must_use]
    pub fn is_plain_text(&self) -> bool {
        matches!(
            self.slot().content,
            Content::Scalar(Scalar::String { plain: true, .. })
        )
    }

    /// Where the value begins. Of an empty value it is where its key is, of
    /// what an alias brought in, where that was written.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.slot().mark
    }

    /// The line of [`Node::mark`].
    #[must_use]
    pub fn line(&self) -> usize {
        self.mark().line
    }

    /// Where its key begins, or of a list's item the item itself.
    #[must_use]
    pub fn key_mark(&self) -> Mark {
        self.slot().key_mark
    }

    /// The items of a sequence in order; of anything else, none.
    pub fn items(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        self.children(matches!(self.slot().content, Content::Sequence))
    }

    /// The entries of a mapping as they were written; of anything else, none.
    /// Entries that a merge key (`<<`) brought in come last.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> + use<'a> {
        self.children(matches!(self.slot().content, Content::Mapping))
            .filter_map(|node| Some((node.slot().key.as_deref()?, node)))
    }

    /// The value of a key of a mapping.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Node<'a>> {
        self.entries()
            .find(|(k, _)| *k == key)
            .map(|(_, node)| node)
    }

    /// One step down.
    #[must_use]
    pub fn step(&self, step: Step<'_>) -> Option<Node<'a>> {
        match step {
            Step::Key(key) => self.get(key),
            Step::Index(index) => self.items().nth(index),
        }
    }

    /// The same data without places. Recursive to [`MAX_DEPTH`](crate::MAX_DEPTH).
    #[must_use]
    pub fn to_value(&self) -> Value {
        match &self.slot().content {
            Content::Scalar(Scalar::Null) => Value::Null,
            Content::Scalar(Scalar::Bool(value)) => Value::Bool(*value),
            Content::Scalar(Scalar::Number(value)) => Value::Number(value.clone()),
            Content::Scalar(Scalar::String { text, .. }) => Value::String(text.to_string()),
            Content::Sequence => self.items().map(|item| item.to_value()).collect(),
            Content::Mapping => (self.entries())
                .map(|(key, node)| (key.to_owned(), node.to_value()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// Whether the data is the same and written in the same order.
    pub(crate) fn says_the_same(&self, other: &Node<'_>) -> bool {
        self.slots.len() == other.slots.len()
            && self.slot().content == other.slot().content
            && (1..self.slots.len()).all(|i| {
                let (a, b) = (&self.slots[i], &other.slots[i]);
                (&a.key, &a.content, a.len, a.hidden) == (&b.key, &b.content, b.len, b.hidden)
            })
    }

    /// A copy of itself and all below it.
    pub(crate) fn to_slots(self) -> Vec<Slot> {
        self.slots.to_vec()
    }

    fn children(&self, is_collection: bool) -> Children<'a> {
        Children {
            slots: if is_collection { &self.slots[1..] } else { &[] },
        }
    }
}

struct Children<'a> {
    slots: &'a [Slot],
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        loop {
            let first = self.slots.first()?;
            let (slots, rest) = self.slots.split_at(first.len);
            self.slots = rest;
            if !first.hidden {
                return Some(Node { slots });
            }
        }
    }
}

//! What can be wrong with a text, and where.

use crate::node::Mark;

/// A document that is not YAML, or that says more than the data can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {} (document {document}): {message}", .mark.line, .mark.column)]
pub struct ParseError {
    /// Which document of the text, counted from 1; empty ones don't count.
    pub document: usize,
    /// Where the trouble was noticed, which can be after its cause.
    pub mark: Mark,
    /// What is wrong and, where that is known, what to write instead.
    pub message: String,
}

/// A document that is good YAML but not the type that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {} (document {document}): {path}: {message}", .mark.line, .mark.column)]
pub struct FieldError {
    /// Which document of the text, counted from 1; empty ones don't count.
    pub document: usize,
    /// Where the field is written; for a missing field, where its parent is.
    pub mark: Mark,
    /// The field, as `spec.ports[0].port`; `.` is the document itself.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

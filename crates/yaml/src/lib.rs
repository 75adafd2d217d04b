//! YAML documents that remember where everything was written.
//!
//! A person who mistyped one word in a file of a thousand documents needs to
//! be told the document, the line and the field. The usual path from YAML to
//! Rust types forgets all three as soon as the text is parsed, so this crate
//! keeps the line and column of every key and value beside the data.
//!
//! ```
//! use edgemesh_yaml::{Kind, documents};
//!
//! let text = "kind: Service\n---\nkind: [oops\n---\nkind: Node\nspec:\n  port: 80\n";
//! let results: Vec<_> = documents(text).collect();
//!
//! // A malformed document doesn't hide the others.
//! assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
//!
//! let node = results[2].as_ref().unwrap().root().get("spec").unwrap().get("port").unwrap();
//! assert_eq!(node.line(), 7);
//! assert!(matches!(node.kind(), Kind::Number(n) if n.as_u64() == Some(80)));
//! ```
//!
//! What is read, and as what:
//!
//! * YAML 1.2 with its core schema (<https://yaml.org/spec/1.2.2/#103-core-schema>);
//!   JSON is a subset of it. The data is what JSON can say: mapping keys are
//!   strings (the text of a plain `80:` is its key), numbers are finite.
//! * Any number of documents in one text; empty ones are skipped.
//! * Anchors and aliases are expanded, and so are merge keys (`<<`), which
//!   YAML 1.2 dropped but manifests in the wild use.
//! * A key given twice in one mapping is an error that names both lines.
//!
//! No input makes it panic, recurse without bound, or grow far beyond its own
//! size: nesting is limited to [`MAX_DEPTH`], and what aliases add to
//! [`ALIAS_BUDGET`].

mod compose;
mod document;
mod error;
mod node;
mod scalar;
mod stream;

pub use compose::{ALIAS_BUDGET, DuplicateKeys, MAX_DEPTH};
pub use document::{Document, Documents, Repeat, documents, documents_with};
pub use error::{FieldError, ParseError};
pub use node::{Kind, Mark, Node, Step};

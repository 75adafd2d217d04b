//! Whatever the text, reading it ends, doesn't panic, and its places exist.

use edgemesh_yaml::{DuplicateKeys, Node, documents, documents_with};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

/// Pieces that YAML gives a meaning to, so that random texts are nearly YAML.
const PIECES: &[&str] = &[
    "a",
    "b: ",
    "- ",
    "? ",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&x ",
    "*x ",
    "*x : ",
    "!!str ",
    "!t ",
    "! ",
    "!<a> ",
    "|",
    "|2\n",
    ">-\n",
    "'",
    "\"",
    "\\x",
    "\\",
    "#",
    " #",
    "---\n",
    "...\n",
    "--- ",
    "%YAML 1.2\n",
    "%TAG !a! b\n",
    "\t",
    "\r",
    "\r\n",
    "\u{feff}",
    "é",
    "\u{85}",
    "\u{2028}",
    "<<: *x\n",
    "0",
    "1.5",
    "-",
    "~",
    "null",
    "@",
    "`",
    "\0",
    "😀",
    "a:\n",
    "- - ",
    "? - ",
];

const MANIFEST: &str = "\
# A comment.
apiVersion: v1
kind: Service
metadata: &meta
  name: web
  labels: {app: \"web\", tier: 'front'}
spec:
  clusterIP: 10.96.0.10
  ports:
  - name: http
    port: 80
    targetPort: 0x1F90
  - &second {name: https, port: 443}
---
kind: List
items:
- &item {kind: Node}
- *item
- <<: *item
...
%YAML 1.2
---
text: |
  some
   text
other: >-
  folded

  text
";

fn checked(node: Node<'_>, lines: usize) {
    assert!((1..=lines).contains(&node.mark().line) && node.mark().column >= 1);
    assert!((1..=lines).contains(&node.key_mark().line));
    for (_, below) in node.entries() {
        checked(below, lines);
    }
    for below in node.items() {
        checked(below, lines);
    }
}

fn reads_without_panic(text: &str) {
    let lines = text.matches(['\n', '\r']).count() + 1;
    let mut numbers = 0;
    for duplicates in [DuplicateKeys::Refuse, DuplicateKeys::AllowEqual] {
        for (i, result) in documents_with(text, duplicates).enumerate() {
            numbers = i + 1;
            match result {
                Ok(document) => {
                    assert_eq!(document.number(), numbers);
                    checked(document.root(), lines);
                }
                Err(error) => {
                    assert_eq!(error.document, numbers);
                    assert!((1..=lines + 1).contains(&error.mark.line), "{error}");
                }
            }
        }
    }
    assert!(numbers <= lines);
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[ -~é\\n\\t]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map("[ -~é]{0,8}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        reads_without_panic(&text);
    }

    #[test]
    fn nearly_yaml_never_panics(pieces in vec(proptest::sample::select(PIECES), 0..40)) {
        reads_without_panic(&pieces.concat());
    }

    #[test]
    fn damaged_manifests_never_panic(
        edits in vec((any::<prop::sample::Index>(), 0usize..4, proptest::sample::select(PIECES)), 1..6),
    ) {
        let mut text: Vec<char> = MANIFEST.chars().collect();
        for (at, removed, piece) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, piece.chars());
        }
        reads_without_panic(&text.into_iter().collect::<String>());
    }

    #[test]
    fn json_is_read_as_json_reads_it(value in json()) {
        prop_assume!(!value.is_null());
        for text in [serde_json::to_string(&value)?, serde_json::to_string_pretty(&value)?] {
            let mut read = documents(&text);
            prop_assert_eq!(read.next().unwrap().unwrap().to_value(), value.clone());
            prop_assert!(read.next().is_none());
        }
    }
}

#[test]
fn the_undamaged_manifest_is_good() {
    assert_eq!(documents(MANIFEST).filter(Result::is_ok).count(), 3);
}

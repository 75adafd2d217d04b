//! What a text of documents is read as, and where each thing is said to be.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail as it does"
)]

use edgemesh_yaml::{Document, DuplicateKeys, Kind, MAX_DEPTH, Step, documents, documents_with};
use serde_json::{Value, json};

fn values(text: &str) -> Vec<Value> {
    documents(text).map(|d| d.unwrap().to_value()).collect()
}

fn value(text: &str) -> Value {
    let mut values = values(text);
    assert_eq!(values.len(), 1, "{text}");
    values.remove(0)
}

fn error(text: &str) -> String {
    let mut errors = documents(text).filter_map(Result::err);
    let error = errors.next().expect("the text is wrong").to_string();
    assert_eq!(errors.next(), None);
    error
}

#[test]
fn scalars_and_collections_become_their_json() {
    let text = "a: 1\nb: [x, 'y', \"z\\n\", ~, true]\nc: {d: 1.5, e: }\nf: |\n  two\n  lines\n";
    assert_eq!(
        value(text),
        json!({
            "a": 1, "b": ["x", "y", "z\n", null, true],
            "c": {"d": 1.5, "e": null}, "f": "two\nlines\n",
        })
    );
}

#[test]
fn json_is_yaml() {
    let text = "{\"kind\": \"List\",\n\t\"items\": [{\"port\": 80, \"name\": \"\\u00e9\\/\"}]}";
    assert_eq!(
        value(text),
        json!({"kind": "List", "items": [{"port": 80, "name": "é/"}]})
    );
}

#[test]
fn keys_are_the_text_they_were_written_as() {
    assert_eq!(
        value("80: a\ntrue: b\n\"c d\": e\n? f\n: g\n"),
        json!({"80": "a", "true": "b", "c d": "e", "f": "g"})
    );
}

#[test]
fn empty_documents_are_skipped_and_not_counted() {
    let text = "# only a comment\n---\n---\na: 1\n---\n# nothing\n---\nnull\n---\nb: 2\n";
    let documents: Vec<_> = documents(text).map(Result::unwrap).collect();
    let numbers: Vec<_> = documents.iter().map(Document::number).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(documents[1].line_of([Step::Key("b")]), 10);
}

#[test]
fn a_malformed_document_does_not_hide_the_others() {
    let text = "a: 1\n---\nb: [2\n---\nc: 3\nc: 4\n---\nd: 5\n";
    let results: Vec<_> = documents(text).collect();
    assert_eq!(results.len(), 4);
    assert_eq!(results[0].as_ref().unwrap().to_value(), json!({"a": 1}));
    assert_eq!(results[1].as_ref().unwrap_err().document, 2);
    assert_eq!(
        results[2].as_ref().unwrap_err().to_string(),
        "line 6, column 1 (document 3): the key 'c' is given twice; it is first on line 5"
    );
    assert_eq!(results[3].as_ref().unwrap().to_value(), json!({"d": 5}));
    assert_eq!(results[3].as_ref().unwrap().number(), 4);
}

#[test]
fn every_value_knows_its_line_and_column() {
    let text = "# head\n---\nkind: Service\nspec:\n  ports:\n  - port: 80\n  - {port: 81,\n     name: é, x: y}\n  empty:\n";
    let document = documents(text).next().unwrap().unwrap();
    let at = |path: &[Step<'_>]| {
        let mark = document.mark_of(path.iter().copied());
        (mark.line, mark.column)
    };
    let ports = [Step::Key("spec"), Step::Key("ports")];
    let port = |i, key: &'static str| [ports[0], ports[1], i, key.into()].map(Into::into);
    assert_eq!(at(&[]), (3, 1));
    assert_eq!(at(&["kind".into()]), (3, 7));
    assert_eq!(at(&port(0.into(), "port")), (6, 11));
    assert_eq!(at(&port(1.into(), "port")), (7, 12));
    assert_eq!(at(&port(1.into(), "x")), (8, 18));
    // An empty value is where its key is, a missing one where its parent is.
    assert_eq!(at(&["spec".into(), "empty".into()]), (9, 3));
    assert_eq!(at(&port(0.into(), "missing")), (6, 5));
    assert_eq!(at(&port(7.into(), "missing")).0, 6);
}

#[test]
fn entries_come_in_the_order_they_were_written() {
    let document = documents("z: 1\na: 2\nm: 3\n").next().unwrap().unwrap();
    let keys: Vec<_> = document
        .root()
        .entries()
        .map(|(k, n)| (k, n.key_mark().line))
        .collect();
    assert_eq!(keys, [("z", 1), ("a", 2), ("m", 3)]);
}

#[test]
fn aliases_stand_for_what_their_anchors_name() {
    let text = "a: &x {p: &y 1, q: [*y]}\nb: *x\n*y : c\n&k key: d\ne: *k\n";
    assert_eq!(
        value(text),
        json!({"a": {"p": 1, "q": [1]}, "b": {"p": 1, "q": [1]}, "1": "c", "key": "d", "e": "key"})
    );
}

#[test]
fn an_error_within_an_alias_is_where_it_was_written() {
    let document = documents("a: &x\n  p: 1\nb: *x\n").next().unwrap().unwrap();
    assert_eq!(document.line_of([Step::Key("b")]), 3);
    assert_eq!(document.line_of([Step::Key("b"), Step::Key("p")]), 2);
}

#[test]
fn merge_keys_bring_in_what_the_mapping_does_not_say_itself() {
    let text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\n\
                one: {<<: *b, x: 5}\ntwo:\n  <<: [*m, *b]\n'<<': 6\n";
    assert_eq!(
        value(text),
        json!({
            "base": {"x": 1, "y": 2}, "more": {"y": 3, "z": 4},
            "one": {"x": 5, "y": 2}, "two": {"x": 1, "y": 3, "z": 4}, "<<": 6,
        })
    );
    assert!(error("<<: 1\n").contains("merges a mapping"));
}

#[test]
fn aliases_that_cannot_stand_for_anything_are_errors() {
    assert!(error("a: &x [*x]\n").contains("within its own anchor"));
    assert!(error("a: *x\n").contains("line 1"));
    // Anchors end with their document.
    let results: Vec<_> = documents("a: &x 1\n---\nb: *x\n").collect();
    assert!(results[0].is_ok() && results[1].is_err());
}

#[test]
fn aliases_of_aliases_are_stopped_before_they_fill_the_memory() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        text += &format!("a{i}: &a{i} [{items}]\n");
    }
    assert!(error(&text).contains("aliases expand to more than 32 MiB"));

    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(100_000),
        "*a, ".repeat(10_000)
    );
    assert!(error(&long).contains("aliases expand"));

    // The budget is the text's, not each document's.
    let document = format!("---\na: &a {}\nb: [*a, *a]\n", "x".repeat(1 << 20));
    let results: Vec<_> = documents(&document.repeat(20)).collect();
    assert!(results[..10].iter().all(Result::is_ok));
    assert!(results[17..].iter().all(Result::is_err));
}

#[test]
fn nesting_is_bounded() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(documents(&nested(MAX_DEPTH)).all(|d| d.is_ok()));
    assert!(error(&nested(MAX_DEPTH + 1)).contains("nested more than 100 deep"));
    assert!(documents(&nested(100_000)).all(|d| d.is_err()));
    // Also of what an alias brings in.
    let alias = format!(
        "a: &a {}\nb: {}*a{}\n",
        nested(60),
        "[".repeat(60),
        "]".repeat(60)
    );
    assert!(error(&alias).contains("nested more than"));
}

#[test]
fn a_key_given_twice_names_both_lines() {
    let text = "a:\n  b: 1\n  c: 2\n  \"b\": 1\n";
    assert_eq!(
        error(text),
        "line 4, column 3 (document 1): the key 'b' is given twice; it is first on line 2"
    );
}

#[test]
fn a_key_repeated_with_the_same_value_can_be_let_through() {
    let text = "l:\n- a: {x: [1, z]}\n  a: {x: [1, z]}\n";
    let mut read = documents_with(text, DuplicateKeys::AllowEqual);
    let document = read.next().unwrap().unwrap();
    assert_eq!(document.to_value(), json!({"l": [{"a": {"x": [1, "z"]}}]}));
    let repeat = &document.repeats()[0];
    assert_eq!(
        (repeat.path.as_str(), repeat.first.line, repeat.again.line),
        ("l[].a", 2, 3)
    );
    assert!(documents_with("a: 1\na: 2\n", DuplicateKeys::AllowEqual).all(|d| d.is_err()));
}

#[test]
fn what_json_cannot_say_is_an_error_with_its_line() {
    for (text, expected) in [
        (
            "a:\n  b: .nan\n",
            "line 2, column 6 (document 1): '.nan' is not a finite number",
        ),
        (
            "a: 1\n[b]: 2\n",
            "line 2, column 1 (document 1): a key must be",
        ),
        (
            "a: 1\n~: 2\n",
            "line 2, column 1 (document 1): a key is missing here",
        ),
        (
            "a: !x 2\n",
            "line 1, column 4 (document 1): the tag !x has no meaning here",
        ),
        (
            "a: !!int x\n",
            "line 1, column 4 (document 1): 'x' is not what its tag !!int says",
        ),
        (
            "a: 1\nb: x\0y\nc: 2\n",
            "line 2, column 5 (document 1): the control character 0x00",
        ),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn core_schema_tags_are_followed() {
    assert_eq!(
        value("[!!str 5, !!int 5, !!float 1, ! 5, !!null '', !!map {a: !!seq [1]}]"),
        json!(["5", 5, 1, "5", null, {"a": [1]}])
    );
}

#[test]
fn a_field_that_does_not_fit_is_named_with_its_path_and_line() {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(rename = "ports")]
        _ports: Vec<u16>,
    }
    #[derive(serde::Deserialize)]
    struct Object {
        #[serde(rename = "spec")]
        _spec: Spec,
    }
    let read = |text: &str| {
        let document = documents(text).last().unwrap().unwrap();
        document
            .deserialize::<Object>()
            .err()
            .map(|e| e.to_string())
    };
    assert_eq!(read("spec:\n  ports: [1, 2]\n"), None);
    assert_eq!(
        read("x: 1\n---\nspec:\n  ports:\n  - 1\n  - http\n").unwrap(),
        "line 6, column 5 (document 2): spec.ports[1]: invalid type: string \"http\", expected u16"
    );
    assert_eq!(
        read("spec:\n  port: []\n").unwrap(),
        "line 2, column 3 (document 1): spec: missing field `ports`"
    );
}

#[test]
fn text_without_quotes_is_told_from_quoted_text() {
    let document = documents("a: yes\nb: 'yes'\nc: true\n")
        .next()
        .unwrap()
        .unwrap();
    let plain = |key: &str| document.root().get(key).unwrap().is_plain_text();
    assert_eq!((plain("a"), plain("b"), plain("c")), (true, false, false));
    assert_eq!(
        document.root().get("a").unwrap().kind(),
        Kind::String("yes")
    );
}

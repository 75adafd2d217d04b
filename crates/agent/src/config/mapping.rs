//! The entries of a mapping, by the keys that it may have.

use std::collections::BTreeMap;

use edgemesh_yaml::{Kind, Mark, Node};

use super::findings::{Report, UnknownKey};
use super::values::described;

/// The entries of a mapping whose keys are among `known`, under the known spelling and
/// without those that are null; whatever else is there is reported.
pub(super) fn entries<'a, 'k>(
    node: Node<'a>,
    path: &str,
    known: &[&'k str],
    report: &mut Report,
) -> Vec<(&'k str, Node<'a>)> {
    match node.kind() {
        Kind::Mapping => {}
        Kind::Null => return Vec::new(),
        Kind::Bool(_) | Kind::Number(_) | Kind::String(_) | Kind::Sequence => {
            let found = described(&node);
            report.error(
                node.mark(),
                path,
                format!("must be a mapping of keys; found {found}"),
            );
            return Vec::new();
        }
    }
    let mut found = Vec::new();
    let mut seen: BTreeMap<&str, Mark> = BTreeMap::new();
    for (written, value) in node.entries() {
        let Some(name) = spelling(written, known) else {
            report.unknown.push(UnknownKey {
                mark: value.key_mark(),
                key: join(path, written),
                name: written.to_owned(),
                known: known.iter().map(|&name| name.to_owned()).collect(),
            });
            continue;
        };
        if let Some(first) = seen.insert(name, value.key_mark()) {
            let message = format!("is already on line {} in another case", first.line);
            report.error(value.key_mark(), &join(path, name), message);
        } else if value.kind() != Kind::Null {
            found.push((name, value));
        }
    }
    found
}

/// Go matches the keys of a file without regard to case, and EdgeMesh's own example has
/// a `TunnelPeerBaseStreamIn` (docs/reference/config-items.md).
fn spelling<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    let exact = known.iter().find(|name| **name == written);
    let any_case = || known.iter().find(|name| name.eq_ignore_ascii_case(written));
    exact.or_else(any_case).copied()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

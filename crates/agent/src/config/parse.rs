//! From the text of a configuration file to a configuration, or to all that is wrong
//! with it.

use std::collections::{BTreeMap, BTreeSet};

use edgemesh_yaml::{Document, DuplicateKeys, Kind, Mark, Node, documents_with};

use super::consistency;
use super::findings::{ConfigErrors, Finding, Report};
use super::key::{Key, Role};
use super::keys::{self, API_VERSION, KIND};
use super::near_match::nearest;
use super::settings::Config;
use super::values::described;

/// A good configuration and what its operator should know about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parsed {
    /// The configuration.
    pub(crate) config: Config,
    /// What the file says and the agent doesn't do, in the order of its lines.
    pub(crate) warnings: Vec<Finding>,
}

/// Reads the text of a configuration file. `file` is its name for errors and warnings.
///
/// A file without content is one that leaves everything at its default.
///
/// # Errors
///
/// All mistakes of the file at once, each with its line.
pub(crate) fn parse(text: &str, file: &str) -> Result<Parsed, ConfigErrors> {
    let mut report = Report::new(file);
    let mut config = Config::default();
    if let Some(document) = only_document(text, &mut report) {
        report.begin(document.root().mark());
        read_document(&document, &mut config, &mut report);
    }
    if report.errors.is_empty() {
        consistency::check(&config, &mut report);
    }
    let Report {
        mut errors,
        mut warnings,
        ..
    } = report;
    errors.sort_by_key(|finding| finding.mark);
    warnings.sort_by_key(|finding| finding.mark);
    if errors.is_empty() {
        Ok(Parsed { config, warnings })
    } else {
        Err(ConfigErrors { findings: errors })
    }
}

fn only_document(text: &str, report: &mut Report) -> Option<Document> {
    let mut only = None;
    // EdgeMesh's Helm chart writes serviceFilterMode twice where it is set at all.
    for result in documents_with(text, DuplicateKeys::AllowEqual) {
        match result {
            Err(error) => report.error(error.mark, "", error.message),
            Ok(document) if only.is_none() => only = Some(document),
            Ok(document) => {
                let message = "a second document begins here; a configuration is a single one";
                report.error(document.root().mark(), "", message);
            }
        }
    }
    only
}

fn read_document(document: &Document, config: &mut Config, report: &mut Report) {
    for repeat in document.repeats() {
        let line = repeat.first.line;
        let message = format!("is already on line {line} with the same value; remove one of them");
        report.warning(repeat.again, &repeat.path, message);
    }
    let root = document.root();
    if root
        .get("kind")
        .is_some_and(|kind| kind.kind() == Kind::String("ConfigMap"))
    {
        let message = "this is a ConfigMap; the configuration is the text below its data key, \
                       edgemesh-agent.yaml: give that as a file of its own";
        report.error(root.mark(), "kind", message);
        return;
    }
    read_section(root, "", config, report);
}

/// Reads the keys below `prefix`, which is "" or ends in a dot.
fn read_section(node: Node<'_>, prefix: &str, config: &mut Config, report: &mut Report) {
    let names = keys::below(prefix);
    let path = prefix.trim_end_matches('.');
    for (name, value) in entries(node, path, &names, report) {
        let path = format!("{prefix}{name}");
        match keys::find(&path) {
            Some(key) => read_key(key, value, config, report),
            None if prefix.is_empty() && (name == "apiVersion" || name == "kind") => {
                check_identity(name, value, report);
            }
            None => read_section(value, &format!("{path}."), config, report),
        }
    }
}

fn read_key(key: &'static Key, node: Node<'_>, config: &mut Config, report: &mut Report) {
    report.set(key.path, &node);
    match &key.role {
        Role::Honoured { read, .. } => read(node, key.path, report, config),
        Role::NotHonoured {
            check,
            instead,
            harmless,
            ..
        } => {
            let Some(value) = check(node, key.path, report) else {
                return;
            };
            if *harmless != Some(value.as_str()) {
                report.warning(
                    node.key_mark(),
                    key.path,
                    format!("not honoured: {instead}"),
                );
            }
        }
    }
}

fn check_identity(name: &str, node: Node<'_>, report: &mut Report) {
    let wanted = if name == "kind" { KIND } else { API_VERSION };
    if node.kind() == Kind::String(wanted) {
        return;
    }
    let hint = match node.kind() {
        Kind::String("EdgeMeshGateway") => ", which configures EdgeMesh's gateway, another program",
        _ => "",
    };
    let found = described(&node);
    report.error(
        node.mark(),
        name,
        format!("must be {wanted}; found {found}{hint}"),
    );
}

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
            let key = join(path, written);
            report.error(value.key_mark(), &key, unknown(path, written, known));
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

fn unknown(path: &str, written: &str, known: &[&str]) -> String {
    let full = join(path, written);
    if let Some(hint) = keys::former(&full) {
        return format!("unknown key: {hint}");
    }
    if let Some(meant) = nearest(written, known.iter().copied()) {
        return format!("unknown key; did you mean {meant}?");
    }
    if let Some(elsewhere) = only_place_of(written) {
        return format!("unknown key here; it belongs at {elsewhere}");
    }
    let known: BTreeSet<&str> = known.iter().copied().collect();
    let known: Vec<&str> = known.into_iter().collect();
    format!("unknown key; known here are {}", known.join(", "))
}

/// The one key of this name, if there is only one anywhere.
fn only_place_of(name: &str) -> Option<&'static str> {
    let named = |key: &&Key| key.path.rsplit('.').next() == Some(name);
    let mut places = keys::all().filter(named);
    places
        .next()
        .filter(|_| places.next().is_none())
        .map(|key| key.path)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

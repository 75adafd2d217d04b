//! From the text of a configuration file to a configuration, or to all that is wrong
//! with it.

use std::mem;

use edgemesh_yaml::{Document, DuplicateKeys, Kind, Node, documents_with};

use super::consistency;
use super::findings::{ConfigErrors, Finding, Report, UnknownKey};
use super::key::{Key, Role};
use super::keys::{self, API_VERSION, KIND};
use super::mapping::entries;
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
    for unknown in mem::take(&mut report.unknown) {
        report.error(unknown.mark, &unknown.key, hint(&unknown));
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

/// What is meant, if that can be told, else what is known there.
fn hint(unknown: &UnknownKey) -> String {
    if let Some(hint) = keys::former(&unknown.key) {
        return format!("unknown key: {hint}");
    }
    let name = unknown.name.as_str();
    let known: Vec<&str> = unknown.known.iter().map(String::as_str).collect();
    if let Some(meant) = nearest(name, known.iter().copied()) {
        return format!("unknown key; did you mean {meant}?");
    }
    if let Some(elsewhere) = only_place_of(name) {
        return format!("unknown key here; it belongs at {elsewhere}");
    }
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

//! From the text of a manifest to objects. No I/O.

use std::collections::BTreeMap;
use std::path::Path;

use edgemesh_catalog::{EndpointSlice, MeshNode, Node, ObjectName, Service};
use edgemesh_yaml::{Document, Step, documents};
use serde_json::Value;
use tracing::debug;

use super::error::ManifestError;
use crate::objects::{
    Endpoints, Field, KnownNames, PathStep, Problem, Reading, read_endpoint_slice, read_endpoints,
    read_mesh_node, read_node, read_service,
};

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// The objects of its good documents, and what is usable of the others.
    pub(crate) objects: Vec<Manifest>,
    /// What is wrong with the rest.
    pub(crate) errors: Vec<ManifestError>,
}

/// One object of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    Service(Service),
    Slice(EndpointSlice),
    Endpoints(Endpoints),
    Node(Node),
    MeshNode(Box<MeshNode>),
}

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManifestKey {
    pub(crate) kind: ManifestKind,
    /// Nodes and MeshNodes have the namespace "".
    pub(crate) name: ObjectName,
}

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ManifestKind {
    Service,
    Slice,
    Endpoints,
    Node,
    MeshNode,
}

impl ManifestKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ManifestKind::Service => "Service",
            ManifestKind::Slice => "EndpointSlice",
            ManifestKind::Endpoints => "Endpoints",
            ManifestKind::Node => "Node",
            ManifestKind::MeshNode => "MeshNode",
        }
    }
}

impl Manifest {
    pub(crate) fn key(&self) -> ManifestKey {
        let (kind, name) = match self {
            Manifest::Service(service) => (ManifestKind::Service, service.name.clone()),
            Manifest::Slice(slice) => (ManifestKind::Slice, slice.name.clone()),
            Manifest::Endpoints(endpoints) => (ManifestKind::Endpoints, endpoints.name.clone()),
            Manifest::Node(node) => (ManifestKind::Node, ObjectName::new("", node.name.as_str())),
            Manifest::MeshNode(node) => (
                ManifestKind::MeshNode,
                ObjectName::new("", node.name.as_str()),
            ),
        };
        ManifestKey { kind, name }
    }
}

/// Reads the bytes of the file `path`, by its extension as JSON or YAML.
pub(crate) fn read_content(path: &Path, bytes: &[u8], names: &mut KnownNames) -> Content {
    let mut reader = Reader {
        path,
        names,
        seen: BTreeMap::new(),
        content: Content::default(),
    };
    match std::str::from_utf8(bytes) {
        Ok(text) if path.extension().is_some_and(|e| e == "json") => reader.read_json(text),
        Ok(text) => reader.read_yaml(text),
        Err(error) => {
            let valid = &bytes[..error.valid_up_to()];
            let line = 1 + newlines(valid);
            let valid = String::from_utf8_lossy(valid);
            reader.complain(
                documents(&valid).count().max(1),
                line,
                String::new(),
                "is not UTF-8 text; save the file as UTF-8".to_owned(),
            );
        }
    }
    reader.content
}

struct Reader<'a> {
    path: &'a Path,
    names: &'a mut KnownNames,
    /// In which document each object was.
    seen: BTreeMap<ManifestKey, usize>,
    content: Content,
}

impl Reader<'_> {
    fn read_yaml(&mut self, text: &str) {
        for document in documents(text) {
            match document {
                Ok(document) => {
                    let problems = self.read_document(&document.to_value(), document.number());
                    for problem in problems {
                        let line = line_of(&document, &problem.path);
                        self.complain_about(document.number(), line, &problem);
                    }
                }
                Err(error) => {
                    self.complain(
                        error.document,
                        error.mark.line,
                        String::new(),
                        error.message,
                    );
                }
            }
        }
    }

    /// JSON values one after another, as `kubectl get -o json` and `jq` write them.
    fn read_json(&mut self, text: &str) {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut number = 0;
        loop {
            let start = values.byte_offset();
            let Some(value) = values.next() else { return };
            number += 1;
            match value {
                Ok(value) => {
                    let problems = self.read_document(&value, number);
                    let its_text = &text[start..values.byte_offset()];
                    self.locate_in_json(problems, number, &text[..start], its_text);
                }
                Err(error) => {
                    self.complain(
                        number,
                        error.line().max(1),
                        String::new(),
                        format!("is not JSON: {error}"),
                    );
                    return;
                }
            }
        }
    }

    /// JSON is read without places, for speed; only a mistake has its line looked up.
    fn locate_in_json(&mut self, problems: Vec<Problem>, number: usize, before: &str, text: &str) {
        if problems.is_empty() {
            return;
        }
        // A text that begins with the newline after the value before it.
        let skipped = text.len() - text.trim_start().len();
        let lines_before = newlines(before.as_bytes()) + newlines(&text.as_bytes()[..skipped]);
        let document = documents(text.trim_start()).find_map(Result::ok);
        for problem in problems {
            let line = document.as_ref().map_or(1, |d| line_of(d, &problem.path));
            self.complain_about(number, lines_before + line, &problem);
        }
    }

    fn read_document(&mut self, value: &Value, number: usize) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.read_object(value, None, number, &mut Vec::new(), &mut problems);
        problems
    }

    /// Reads one object, or each of a list. `at` leads from the document to the object.
    fn read_object(
        &mut self,
        value: &Value,
        of_list: Option<Known>,
        number: usize,
        at: &mut Vec<PathStep>,
        problems: &mut Vec<Problem>,
    ) {
        let mut found = Vec::new();
        let kind = match of_list {
            Some(known) if value.get("kind").is_none() => Some(known),
            Some(_) | None => kind_of(value, &mut found),
        };
        match kind {
            None => {}
            Some(Known::List(of)) => self.read_list(value, of, number, at, problems),
            Some(Known::Manifest(kind)) => {
                let reading = read_kind(kind, value, self.names);
                found.extend(reading.problems);
                if let Some(manifest) = reading.object {
                    self.keep(manifest, number, &mut found);
                }
            }
        }
        for Problem { path, message } in found {
            let path = at.iter().cloned().chain(path).collect();
            problems.push(Problem { path, message });
        }
    }

    fn read_list(
        &mut self,
        value: &Value,
        of: Option<ManifestKind>,
        number: usize,
        at: &mut Vec<PathStep>,
        problems: &mut Vec<Problem>,
    ) {
        let items = value.get("items").and_then(Value::as_array);
        at.push(PathStep::Key("items".to_owned()));
        for (index, item) in items.into_iter().flatten().enumerate() {
            at.push(PathStep::Index(index));
            self.read_object(item, of.map(Known::Manifest), number, at, problems);
            at.pop();
        }
        at.pop();
    }

    fn keep(&mut self, manifest: Manifest, number: usize, problems: &mut Vec<Problem>) {
        let key = manifest.key();
        if let Some(first) = self.seen.get(&key) {
            problems.push(Problem {
                path: ["metadata", "name"]
                    .map(|k| PathStep::Key(k.to_owned()))
                    .into(),
                message: format!(
                    "{} {} is in document {first} of this file already; remove one of them",
                    key.kind.as_str(),
                    key.name
                ),
            });
            return;
        }
        self.seen.insert(key, number);
        self.content.objects.push(manifest);
    }

    fn complain_about(&mut self, document: usize, line: usize, problem: &Problem) {
        self.complain(document, line, problem.field(), problem.message.clone());
    }

    fn complain(&mut self, document: usize, line: usize, field: String, message: String) {
        self.content.errors.push(ManifestError {
            path: self.path.to_owned(),
            document,
            line,
            field,
            message,
        });
    }
}

/// What a document can be, as far as it is read.
#[derive(Clone, Copy)]
enum Known {
    Manifest(ManifestKind),
    /// A list, of one kind or of objects that say their own.
    List(Option<ManifestKind>),
}

/// The kind of an object; none when it is one that is not read.
fn kind_of(value: &Value, problems: &mut Vec<Problem>) -> Option<Known> {
    let root = Field::root(value);
    if !root.is_mapping(problems) {
        if root.is_absent() {
            problems
                .push(root.problem("is empty; write an object with apiVersion and kind".into()));
        }
        return None;
    }
    let text = |key: &'static str, problems: &mut Vec<Problem>| {
        let field = root.get(key);
        if field.is_absent() {
            problems.push(field.problem("is missing".to_owned()));
        }
        field.text(problems)
    };
    let version = text("apiVersion", problems);
    let kind = text("kind", problems);
    let known = match (version?, kind?) {
        ("v1", "List") => Known::List(None),
        ("v1", "Service") => Known::Manifest(ManifestKind::Service),
        ("v1", "ServiceList") => Known::List(Some(ManifestKind::Service)),
        ("v1", "Endpoints") => Known::Manifest(ManifestKind::Endpoints),
        ("v1", "EndpointsList") => Known::List(Some(ManifestKind::Endpoints)),
        ("v1", "Node") => Known::Manifest(ManifestKind::Node),
        ("v1", "NodeList") => Known::List(Some(ManifestKind::Node)),
        ("discovery.k8s.io/v1", "EndpointSlice") => Known::Manifest(ManifestKind::Slice),
        ("discovery.k8s.io/v1", "EndpointSliceList") => Known::List(Some(ManifestKind::Slice)),
        ("edgemesh.kubeedge.io/v1alpha1", "MeshNode") => Known::Manifest(ManifestKind::MeshNode),
        ("edgemesh.kubeedge.io/v1alpha1", "MeshNodeList") => {
            Known::List(Some(ManifestKind::MeshNode))
        }
        ("discovery.k8s.io/v1beta1", "EndpointSlice" | "EndpointSliceList") => {
            let field = root.get("apiVersion");
            problems.push(field.problem("is not read; write discovery.k8s.io/v1".to_owned()));
            return None;
        }
        (version, kind) => {
            debug!(version, kind, "objects of this kind are not read");
            return None;
        }
    };
    Some(known)
}

fn read_kind(kind: ManifestKind, value: &Value, names: &mut KnownNames) -> Reading<Manifest> {
    match kind {
        ManifestKind::Service => read_service(value, names).map(Manifest::Service),
        ManifestKind::Slice => read_endpoint_slice(value, names).map(Manifest::Slice),
        ManifestKind::Endpoints => read_endpoints(value, names).map(Manifest::Endpoints),
        ManifestKind::Node => read_node(value, names).map(Manifest::Node),
        ManifestKind::MeshNode => {
            read_mesh_node(value, names).map(|node| Manifest::MeshNode(Box::new(node)))
        }
    }
}

fn line_of(document: &Document, path: &[PathStep]) -> usize {
    document.line_of(path.iter().map(|step| match step {
        PathStep::Key(key) => Step::Key(key),
        PathStep::Index(index) => Step::Index(*index),
    }))
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;

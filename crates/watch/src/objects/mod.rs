//! From Kubernetes objects to catalog types.
//!
//! Objects come as JSON values, whether the API server or a manifest said them,
//! and are read field by field: what a stranger left out or got wrong is reported
//! with its path, and the usable rest of the object is taken. An object is always
//! read the same way whatever came before it, so that a watch ends where a fresh
//! list would.

mod endpoint_slice;
mod endpoints;
mod field;
mod known_names;
mod mesh_node;
mod node;
mod service;

#[cfg(test)]
mod mesh_node_crd_tests;
#[cfg(test)]
mod tests;

pub(crate) use endpoint_slice::read_endpoint_slice;
pub(crate) use endpoints::{Endpoints, is_from_endpoints, read_endpoints};
pub(crate) use field::{Field, PathStep, Problem};
pub(crate) use known_names::KnownNames;
pub(crate) use mesh_node::read_mesh_node;
pub(crate) use node::read_node;
pub(crate) use service::read_service;

use edgemesh_catalog::{ObjectName, Protocol};

/// What was found in one object.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    /// The object; none when it is of no interest (a slice without a Service) or so
    /// broken that nothing of it can be used.
    pub(crate) object: Option<T>,
    /// What is wrong with it.
    pub(crate) problems: Vec<Problem>,
}

impl<T> Reading<T> {
    pub(crate) fn map<U>(self, into: impl FnOnce(T) -> U) -> Reading<U> {
        Reading {
            object: self.object.map(into),
            problems: self.problems,
        }
    }
}

/// Namespace and name of a namespaced object; reports a missing name.
fn object_name(
    root: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<ObjectName> {
    let metadata = root.get("metadata");
    let name = required_text(&metadata.get("name"), problems)?;
    let namespace = metadata
        .get("namespace")
        .text(problems)
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    Some(ObjectName::new(names.get(namespace), names.get(name)))
}

fn required_text<'v>(field: &Field<'_, 'v>, problems: &mut Vec<Problem>) -> Option<&'v str> {
    let before = problems.len();
    let text = field.text(problems).filter(|text| !text.is_empty());
    if text.is_none() && problems.len() == before {
        problems.push(field.problem("is missing".to_owned()));
    }
    text
}

/// The protocol of a port; TCP when absent, as the API server defaults it.
fn protocol(port: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<Protocol> {
    let field = port.get("protocol");
    if field.is_absent() {
        return Some(Protocol::Tcp);
    }
    match field.text(problems)?.parse() {
        Ok(protocol) => Some(protocol),
        Err(error) => {
            let error: edgemesh_catalog::UnknownProtocol = error;
            problems.push(field.problem(format!(
                "{:?} is none of TCP, UDP, SCTP; write one of these",
                error.0
            )));
            None
        }
    }
}

/// A port number that is there.
fn port_number(field: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<u16> {
    let number = field.integer(problems)?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        Ok(_) | Err(_) => {
            problems.push(field.problem(format!(
                "{number} is not a port number; write one from 1 to 65535"
            )));
            None
        }
    }
}

//! From watch events to the catalog. No I/O, no clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use edgemesh_catalog::{
    Catalog, Change, EndpointSlice, Fold, MeshNode, Node, NodeName, ObjectName, Service,
};
use kube::core::Resource;
use kube::runtime::watcher::Event;

use super::delivered::{Delivered, WatchedKind};
use crate::complaints::Complaints;
use crate::counters::Counters;
use crate::objects::{
    KnownNames, Problem, read_endpoint_slice, read_endpoints, read_mesh_node, read_node,
    read_service,
};

/// What the events of all watches add up to.
///
/// A list takes effect when it is complete, and as a whole: what it omits is gone.
/// Until then the catalog stays as it was.
#[derive(Debug)]
pub(crate) struct Cluster {
    fold: Fold,
    names: KnownNames,
    complaints: Complaints,
    services: Listing<Service>,
    endpoints: Listing<EndpointSlice>,
    nodes: Listing<Node>,
    nodes_are_missing: bool,
    mesh_nodes: Listing<MeshNode>,
    /// Whether the catalog counts as whole without them.
    mesh_nodes_may_be_missing: bool,
}

/// A list on its way in.
#[derive(Debug)]
struct Listing<T> {
    arrived: Vec<T>,
    /// Names of arrived objects that were complained about.
    with_problems: BTreeSet<String>,
    /// Whether a list was completed before.
    was_complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self {
            arrived: Vec::new(),
            with_problems: BTreeSet::new(),
            was_complete: false,
        }
    }
}

impl<T> Listing<T> {
    fn begin(&mut self) {
        self.arrived = Vec::new();
        self.with_problems = BTreeSet::new();
    }

    fn end(&mut self) -> Vec<T> {
        self.was_complete = true;
        std::mem::take(&mut self.arrived)
    }
}

impl Cluster {
    /// Starts from what was known before, which the first complete lists replace.
    pub(crate) fn new(known: Catalog, counters: Arc<Counters>) -> Self {
        Self {
            fold: Fold::from_catalog(known),
            names: KnownNames::default(),
            complaints: Complaints::new(counters),
            services: Listing::default(),
            endpoints: Listing::default(),
            nodes: Listing::default(),
            nodes_are_missing: false,
            mesh_nodes: Listing::default(),
            mesh_nodes_may_be_missing: false,
        }
    }

    /// Keeps these labels of the Nodes that come from now on.
    pub(crate) fn keep_node_labels(&mut self, labels: Arc<[Arc<str>]>) {
        self.names.keep_node_labels(labels);
    }

    /// The catalog as of now.
    pub(crate) fn catalog(&self) -> Catalog {
        self.fold.catalog()
    }

    /// How many objects are not in order.
    pub(crate) fn objects_with_problems(&self) -> usize {
        self.complaints.count()
    }

    /// Whether every list was completed at least once, or cannot be had.
    pub(crate) fn is_complete(&self) -> bool {
        self.services.was_complete
            && self.endpoints.was_complete
            && (self.nodes.was_complete || self.nodes_are_missing)
            && (self.mesh_nodes.was_complete || self.mesh_nodes_may_be_missing)
    }

    /// Whether completing the list of a kind now would leave nothing of what is known.
    pub(crate) fn would_lose_all(&self, kind: WatchedKind) -> bool {
        let known = self.fold.catalog();
        match kind {
            WatchedKind::Services => {
                self.services.arrived.is_empty() && known.services().next().is_some()
            }
            WatchedKind::EndpointSlices | WatchedKind::Endpoints => {
                self.endpoints.arrived.is_empty() && known.slices().next().is_some()
            }
            WatchedKind::Nodes => self.nodes.arrived.is_empty() && known.nodes().next().is_some(),
            WatchedKind::MeshNodes => {
                self.mesh_nodes.arrived.is_empty() && known.mesh_nodes().next().is_some()
            }
        }
    }

    /// The server does not let us read nodes. Those read before stay; those known
    /// from an earlier life of the agent don't. Returns whether the catalog changed.
    pub(crate) fn do_without_nodes(&mut self) -> bool {
        self.nodes_are_missing = true;
        !self.nodes.was_complete && self.fold.replace_nodes([])
    }

    /// Their list takes long, or fails: a catalog without peers, or with those known from
    /// an earlier life, is better than none.
    pub(crate) fn wait_no_longer_for_mesh_nodes(&mut self) {
        self.mesh_nodes_may_be_missing = true;
    }

    /// The server has no `MeshNode`s. Those read before stay, for servers say so for a
    /// moment while they start; those known from an earlier life of the agent don't.
    /// Returns whether the catalog changed.
    pub(crate) fn do_without_mesh_nodes(&mut self) -> bool {
        self.mesh_nodes_may_be_missing = true;
        !self.mesh_nodes.was_complete && self.fold.replace_mesh_nodes([])
    }

    /// Takes one event in. Returns whether the catalog changed.
    pub(crate) fn take(&mut self, kind: WatchedKind, event: Event<Delivered>) -> bool {
        match event {
            Event::Init => {
                self.begin_list(kind);
                false
            }
            Event::InitApply(object) => {
                self.list_item(kind, &object);
                false
            }
            Event::InitDone => self.end_list(kind),
            Event::Apply(object) => self.apply(kind, &object),
            Event::Delete(object) => self.delete(kind, &object),
        }
    }

    fn begin_list(&mut self, kind: WatchedKind) {
        match kind {
            WatchedKind::Services => self.services.begin(),
            WatchedKind::EndpointSlices | WatchedKind::Endpoints => self.endpoints.begin(),
            WatchedKind::Nodes => self.nodes.begin(),
            WatchedKind::MeshNodes => self.mesh_nodes.begin(),
        }
    }

    fn list_item(&mut self, kind: WatchedKind, object: &Delivered) {
        let name = full_name(object);
        let (found, problems) = self.read(kind, object);
        if !problems.is_empty() {
            let with_problems = match kind {
                WatchedKind::Services => &mut self.services.with_problems,
                WatchedKind::EndpointSlices | WatchedKind::Endpoints => {
                    &mut self.endpoints.with_problems
                }
                WatchedKind::Nodes => &mut self.nodes.with_problems,
                WatchedKind::MeshNodes => &mut self.mesh_nodes.with_problems,
            };
            with_problems.insert(name.clone());
        }
        self.complaints.note(kind.as_str(), &name, problems);
        match found {
            Found::Service(service) => self.services.arrived.push(service),
            Found::Slices(slices) => self.endpoints.arrived.extend(slices),
            Found::Node(node) => self.nodes.arrived.push(node),
            Found::MeshNode(node) => self.mesh_nodes.arrived.push(*node),
            Found::Nothing => {}
        }
    }

    fn end_list(&mut self, kind: WatchedKind) -> bool {
        let (changed, with_problems) = match kind {
            WatchedKind::Services => {
                let services = self.services.end();
                let changed = self.fold.replace_services(services);
                (changed, &self.services.with_problems)
            }
            WatchedKind::EndpointSlices | WatchedKind::Endpoints => {
                let slices = self.endpoints.end();
                let changed = self.fold.replace_slices(slices);
                (changed, &self.endpoints.with_problems)
            }
            WatchedKind::Nodes => {
                self.nodes_are_missing = false;
                let nodes = self.nodes.end();
                (self.fold.replace_nodes(nodes), &self.nodes.with_problems)
            }
            WatchedKind::MeshNodes => {
                let mesh_nodes = self.mesh_nodes.end();
                let changed = self.fold.replace_mesh_nodes(mesh_nodes);
                (changed, &self.mesh_nodes.with_problems)
            }
        };
        self.complaints.retain(kind.as_str(), with_problems);
        changed
    }

    fn apply(&mut self, kind: WatchedKind, object: &Delivered) -> bool {
        let (found, problems) = self.read(kind, object);
        self.complaints
            .note(kind.as_str(), &full_name(object), problems);
        match found {
            Found::Service(service) => self.fold.apply(Change::Service(service)),
            Found::Node(node) => self.fold.apply(Change::Node(node)),
            Found::MeshNode(node) => self.fold.apply(Change::MeshNode(*node)),
            Found::Slices(slices) => match kind {
                WatchedKind::Endpoints => self.put_endpoints(object, slices),
                WatchedKind::Services
                | WatchedKind::EndpointSlices
                | WatchedKind::Nodes
                | WatchedKind::MeshNodes => slices.into_iter().fold(false, |changed, slice| {
                    self.fold.apply(Change::Slice(slice)) | changed
                }),
            },
            // What can no longer be used is as good as gone: a slice that lost its
            // label has left its Service.
            Found::Nothing => self.remove(kind, object),
        }
    }

    fn delete(&mut self, kind: WatchedKind, object: &Delivered) -> bool {
        self.complaints.forget(kind.as_str(), &full_name(object));
        self.remove(kind, object)
    }

    fn remove(&mut self, kind: WatchedKind, object: &Delivered) -> bool {
        match kind {
            WatchedKind::Services => {
                name_of(object).is_some_and(|name| self.fold.apply(Change::ServiceGone(name)))
            }
            WatchedKind::EndpointSlices => {
                name_of(object).is_some_and(|name| self.fold.apply(Change::SliceGone(name)))
            }
            WatchedKind::Endpoints => self.put_endpoints(object, Vec::new()),
            WatchedKind::Nodes => {
                node_name_of(object).is_some_and(|name| self.fold.apply(Change::NodeGone(name)))
            }
            WatchedKind::MeshNodes => {
                node_name_of(object).is_some_and(|name| self.fold.apply(Change::MeshNodeGone(name)))
            }
        }
    }

    /// Makes `slices` all that an Endpoints object stands for.
    fn put_endpoints(&mut self, object: &Delivered, slices: Vec<EndpointSlice>) -> bool {
        let Some(name) = name_of(object) else {
            return false;
        };
        let mut gone: BTreeSet<ObjectName> = self
            .fold
            .catalog()
            .slices_of(&name)
            .map(|slice| slice.name.clone())
            .collect();
        let mut changed = false;
        for slice in slices {
            gone.remove(&slice.name);
            changed |= self.fold.apply(Change::Slice(slice));
        }
        for name in gone {
            changed |= self.fold.apply(Change::SliceGone(name));
        }
        changed
    }

    fn read(&mut self, kind: WatchedKind, object: &Delivered) -> (Found, Vec<Problem>) {
        let (value, names) = (&object.value, &mut self.names);
        match kind {
            WatchedKind::Services => {
                let reading = read_service(value, names);
                (reading.object.into(), reading.problems)
            }
            WatchedKind::EndpointSlices => {
                let reading = read_endpoint_slice(value, names);
                (
                    reading.object.map(|slice| vec![slice]).into(),
                    reading.problems,
                )
            }
            WatchedKind::Endpoints => {
                let reading = read_endpoints(value, names);
                (
                    reading.object.map(|found| found.slices).into(),
                    reading.problems,
                )
            }
            WatchedKind::Nodes => {
                let reading = read_node(value, names);
                (reading.object.into(), reading.problems)
            }
            WatchedKind::MeshNodes => {
                let reading = read_mesh_node(value, names);
                (reading.object.into(), reading.problems)
            }
        }
    }
}

/// What was read from one object.
enum Found {
    Service(Service),
    Slices(Vec<EndpointSlice>),
    Node(Node),
    /// Boxed, for it is larger than the others.
    MeshNode(Box<MeshNode>),
    Nothing,
}

impl From<Option<Service>> for Found {
    fn from(service: Option<Service>) -> Self {
        service.map_or(Found::Nothing, Found::Service)
    }
}

impl From<Option<Vec<EndpointSlice>>> for Found {
    fn from(slices: Option<Vec<EndpointSlice>>) -> Self {
        slices.map_or(Found::Nothing, Found::Slices)
    }
}

impl From<Option<Node>> for Found {
    fn from(node: Option<Node>) -> Self {
        node.map_or(Found::Nothing, Found::Node)
    }
}

impl From<Option<MeshNode>> for Found {
    fn from(node: Option<MeshNode>) -> Self {
        node.map_or(Found::Nothing, |node| Found::MeshNode(Box::new(node)))
    }
}

fn node_name_of(object: &Delivered) -> Option<NodeName> {
    object.meta().name.as_deref().map(NodeName::new)
}

fn name_of(object: &Delivered) -> Option<ObjectName> {
    let meta = object.meta();
    let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
    let namespace = meta.namespace.as_deref().filter(|ns| !ns.is_empty());
    Some(ObjectName::new(namespace.unwrap_or("default"), name))
}

/// The object's name for people, also when it has none.
fn full_name(object: &Delivered) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or("(without a name)");
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

//! The catalog as its readers see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{EndpointSlice, MeshNode, Node, NodeName, ObjectName, Service, SharedMap};

/// Services, endpoint slices, nodes and peers as of one moment.
///
/// A value of this type never changes; copies share their content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub(crate) services: SharedMap<ObjectName, Arc<Service>>,
    pub(crate) slices: SlicesByService,
    pub(crate) nodes: Arc<BTreeMap<NodeName, Arc<Node>>>,
    pub(crate) mesh_nodes: Arc<BTreeMap<NodeName, Arc<MeshNode>>>,
}

/// Slices, grouped by the Service that they belong to and sorted by their own name.
///
/// Most Services have one or two: a slice of pointers is a tenth of what the smallest map
/// takes.
pub(crate) type SlicesByService = SharedMap<ObjectName, Arc<[Arc<EndpointSlice>]>>;

impl Catalog {
    /// All Services, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The slices of a Service, sorted by their names. A slice may be there before
    /// its Service is.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.get(service).into_iter().flat_map(|of| &**of)
    }

    /// The Services that are not what they were in `earlier`, or whose slices are not; those that
    /// came and those that went among them. It costs what changed, if this catalog came from
    /// that one.
    #[must_use]
    pub fn services_changed_since<'a>(&'a self, earlier: &'a Self) -> BTreeSet<&'a ObjectName> {
        let services = earlier.services.differing(&self.services);
        let slices = earlier.slices.differing(&self.slices);
        let services = services.map(|(name, _, _)| name);
        services.chain(slices.map(|(name, _, _)| name)).collect()
    }

    /// All slices, sorted by Service and name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values().flat_map(|of| &**of)
    }

    /// All nodes, sorted by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// What the agents of all nodes say of themselves, sorted by name.
    pub fn mesh_nodes(&self) -> impl Iterator<Item = &Arc<MeshNode>> {
        self.mesh_nodes.values()
    }

    /// What the agent of that node says of itself.
    #[must_use]
    pub fn mesh_node(&self, name: &NodeName) -> Option<&Arc<MeshNode>> {
        self.mesh_nodes.get(name)
    }

    /// Whether Nodes and MeshNodes are the very ones of `earlier`. What is equal, but was made
    /// anew, counts as different.
    #[must_use]
    pub fn has_nodes_of(&self, earlier: &Self) -> bool {
        Arc::ptr_eq(&self.nodes, &earlier.nodes)
            && Arc::ptr_eq(&self.mesh_nodes, &earlier.mesh_nodes)
    }

    /// Whether nothing is known at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.slices.is_empty()
            && self.nodes.is_empty()
            && self.mesh_nodes.is_empty()
    }
}

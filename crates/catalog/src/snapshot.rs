//! The catalog as its readers see it.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{EndpointSlice, MeshNode, Node, NodeName, ObjectName, Service};

/// Services, endpoint slices, nodes and peers as of one moment.
///
/// A value of this type never changes; copies share their content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    pub(crate) services: Arc<BTreeMap<ObjectName, Arc<Service>>>,
    pub(crate) slices: Arc<SlicesByService>,
    pub(crate) nodes: Arc<BTreeMap<NodeName, Arc<Node>>>,
    pub(crate) mesh_nodes: Arc<BTreeMap<NodeName, Arc<MeshNode>>>,
}

/// Slices, grouped by the Service that they belong to and sorted by their own name.
///
/// Most Services have one or two: a slice of pointers is a tenth of what the smallest map
/// takes, and its address tells whether anything about a Service's slices changed.
pub(crate) type SlicesByService = BTreeMap<ObjectName, Arc<[Arc<EndpointSlice>]>>;

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

    /// All Services, sorted by name, and for each whether it and its slices are the very
    /// values that `earlier` has: then nothing about them has changed. Otherwise something
    /// may have; it is not looked into them.
    pub fn services_since<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = (&'a Arc<Service>, bool)> {
        let mut services = InOrder::of(&earlier.services);
        let mut slices = InOrder::of(&self.slices);
        let mut earlier_slices = InOrder::of(&earlier.slices);
        self.services.iter().map(move |(name, service)| {
            let same = services
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(known, service))
                && match (slices.get(name), earlier_slices.get(name)) {
                    (Some(now), Some(then)) => Arc::ptr_eq(now, then),
                    (now, then) => now.is_none() && then.is_none(),
                };
            (service, same)
        })
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

/// Looks keys up that come in ascending order: one walk along the map for all of them.
struct InOrder<'a, K, V>(Peekable<btree_map::Iter<'a, K, V>>);

impl<'a, K: Ord, V> InOrder<'a, K, V> {
    fn of(map: &'a BTreeMap<K, V>) -> Self {
        Self(map.iter().peekable())
    }

    fn get(&mut self, key: &K) -> Option<&'a V> {
        while self.0.next_if(|(known, _)| *known < key).is_some() {}
        match self.0.peek() {
            Some((known, value)) if *known == key => Some(value),
            Some(_) | None => None,
        }
    }
}

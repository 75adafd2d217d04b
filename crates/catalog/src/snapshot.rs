//! The catalog as its readers see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{EndpointSlice, Node, NodeName, ObjectName, Service};

/// Services, endpoint slices and nodes as of one moment.
///
/// A value of this type never changes; copies share their content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    pub(crate) services: Arc<BTreeMap<ObjectName, Arc<Service>>>,
    pub(crate) slices: Arc<SlicesByService>,
    pub(crate) nodes: Arc<BTreeMap<NodeName, Arc<Node>>>,
}

/// Slices, grouped by the Service that they belong to and sorted by their own name.
pub(crate) type SlicesByService = BTreeMap<ObjectName, BTreeMap<Arc<str>, Arc<EndpointSlice>>>;

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
        self.slices
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// All slices, sorted by Service and name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values().flat_map(BTreeMap::values)
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

    /// Whether nothing is known at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty() && self.nodes.is_empty()
    }
}

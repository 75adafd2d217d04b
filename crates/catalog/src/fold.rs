//! Folding a stream of object changes into a catalog.
//!
//! Watches lose their connection, start over, repeat themselves, and show an
//! endpoint in two slices while it moves from one to the other. The fold keeps
//! objects whole and by name, so that whatever was delivered in between, the
//! result is the one that a fresh list would give.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{Catalog, EndpointSlice, MeshNode, Node, NodeName, ObjectName, Service};

/// One change of the cluster, as a watch or a reloaded file reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service was added or changed.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ObjectName),
    /// A slice was added or changed.
    Slice(EndpointSlice),
    /// A slice is gone.
    SliceGone(ObjectName),
    /// A node was added or changed.
    Node(Node),
    /// A node is gone.
    NodeGone(NodeName),
    /// A `MeshNode` was added or changed.
    MeshNode(MeshNode),
    /// A `MeshNode` is gone.
    MeshNodeGone(NodeName),
}

/// The growing catalog of one source.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    catalog: Catalog,
    /// Which Service each slice was last seen to belong to: a slice whose label
    /// changed has to leave its old Service.
    slice_owner: BTreeMap<ObjectName, ObjectName>,
}

impl Fold {
    /// A fold that goes on from `catalog`.
    #[must_use]
    pub fn from_catalog(catalog: Catalog) -> Self {
        let slice_owner = catalog
            .slices()
            .map(|slice| (slice.name.clone(), slice.service_name()))
            .collect();
        Self {
            catalog,
            slice_owner,
        }
    }

    /// The catalog as of now. Cheap: the content is shared.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        self.catalog.clone()
    }

    /// Stores what has been taken in with as little memory as it takes. To be called after
    /// very many changes: maps that grow in the order of their keys are half empty.
    pub fn pack(&mut self) {
        pack(Arc::make_mut(&mut self.catalog.nodes));
        pack(Arc::make_mut(&mut self.catalog.mesh_nodes));
        pack(&mut self.slice_owner);
    }

    /// Takes one change in. Returns whether the catalog is different from before, so
    /// that repeated or irrelevant updates wake nobody.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(service) => self.put_service(service),
            Change::ServiceGone(name) => self.catalog.services.remove(&name).is_some(),
            Change::Slice(slice) => self.put_slice(slice),
            Change::SliceGone(name) => self.remove_slice(&name),
            Change::Node(node) => insert(&mut self.catalog.nodes, node.name.clone(), node),
            Change::NodeGone(name) => remove(&mut self.catalog.nodes, &name),
            Change::MeshNode(node) => insert(&mut self.catalog.mesh_nodes, node.name.clone(), node),
            Change::MeshNodeGone(name) => remove(&mut self.catalog.mesh_nodes, &name),
        }
    }

    /// Makes `services` all there are: what a completed list says.
    pub fn replace_services(&mut self, services: impl IntoIterator<Item = Service>) -> bool {
        let known = self.catalog.services.keys();
        let mut gone: BTreeSet<ObjectName> = known.cloned().collect();
        let mut changed = false;
        for service in services {
            gone.remove(&service.name);
            changed |= self.put_service(service);
        }
        for name in gone {
            changed |= self.catalog.services.remove(&name).is_some();
        }
        changed
    }

    /// Makes `nodes` all there are: what a completed list says.
    pub fn replace_nodes(&mut self, nodes: impl IntoIterator<Item = Node>) -> bool {
        replace(
            &mut self.catalog.nodes,
            nodes.into_iter().map(|n| (n.name.clone(), n)),
        )
    }

    /// Makes `mesh_nodes` all there are: what a completed list says.
    pub fn replace_mesh_nodes(&mut self, mesh_nodes: impl IntoIterator<Item = MeshNode>) -> bool {
        replace(
            &mut self.catalog.mesh_nodes,
            mesh_nodes.into_iter().map(|n| (n.name.clone(), n)),
        )
    }

    /// Makes `slices` all there are: what a completed list says.
    pub fn replace_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) -> bool {
        let mut gone: BTreeSet<ObjectName> = self.slice_owner.keys().cloned().collect();
        let mut changed = false;
        for slice in slices {
            gone.remove(&slice.name);
            changed |= self.put_slice(slice);
        }
        for name in gone {
            changed |= self.remove_slice(&name);
        }
        changed
    }

    fn put_service(&mut self, service: Service) -> bool {
        let known = self.catalog.services.get(&service.name);
        if known.is_some_and(|known| **known == service) {
            return false;
        }
        let name = service.name.clone();
        self.catalog.services.insert(name, Arc::new(service));
        true
    }

    fn put_slice(&mut self, slice: EndpointSlice) -> bool {
        let owner = slice.service_name();
        let moved = self
            .slice_owner
            .get(&slice.name)
            .is_some_and(|old| *old != owner);
        let left = moved && self.remove_slice(&slice.name);
        let of_service = self.catalog.slices.get(&owner);
        let known = of_service.map(|of| (of, position(of, slice.name.name())));
        if let Some((of, Ok(at))) = known
            && *of[at] == slice
        {
            return left;
        }
        self.slice_owner.insert(slice.name.clone(), owner.clone());
        let mut others = of_service.map_or_else(Vec::new, |of| of.to_vec());
        match position(&others, slice.name.name()) {
            Ok(at) => others[at] = Arc::new(slice),
            Err(at) => others.insert(at, Arc::new(slice)),
        }
        self.catalog.slices.insert(owner, others.into());
        true
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(owner) = self.slice_owner.remove(name) else {
            return false;
        };
        let left: Arc<[_]> = self
            .catalog
            .slices_of(&owner)
            .filter(|slice| slice.name != *name)
            .cloned()
            .collect();
        if left.is_empty() {
            self.catalog.slices.remove(&owner);
        } else {
            self.catalog.slices.insert(owner, left);
        }
        true
    }
}

/// A map made from all entries at once has full nodes.
fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// Where among a Service's slices the one of that name is, or belongs.
fn position(of_service: &[Arc<EndpointSlice>], name: &str) -> Result<usize, usize> {
    of_service.binary_search_by(|slice| slice.name.name().cmp(name))
}

fn insert<K: Ord + Clone, V: PartialEq>(
    map: &mut Arc<BTreeMap<K, Arc<V>>>,
    key: K,
    value: V,
) -> bool {
    if map.get(&key).is_some_and(|known| **known == value) {
        return false;
    }
    Arc::make_mut(map).insert(key, Arc::new(value));
    true
}

fn remove<K: Ord + Clone, V>(map: &mut Arc<BTreeMap<K, Arc<V>>>, key: &K) -> bool {
    // Looked up first: make_mut copies the map when somebody reads the old one.
    map.contains_key(key) && Arc::make_mut(map).remove(key).is_some()
}

fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut Arc<BTreeMap<K, Arc<V>>>,
    values: impl Iterator<Item = (K, V)>,
) -> bool {
    let new: BTreeMap<K, Arc<V>> = values
        .map(|(key, value)| {
            // What did not change keeps its allocation, so that readers may compare by pointer.
            let kept = map.get(&key).filter(|known| ***known == value).cloned();
            (key, kept.unwrap_or_else(|| Arc::new(value)))
        })
        .collect();
    let changed = **map != new;
    if changed {
        *map = Arc::new(new);
    }
    changed
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;

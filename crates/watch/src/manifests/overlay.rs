//! The objects of many files, as one catalog. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, Change, EndpointSlice, Fold, NodeName, ObjectName};

use super::content::{Manifest, ManifestKey, ManifestKind};
use crate::objects::{Endpoints, is_from_endpoints};

/// Name of a file within the directory.
pub(crate) type FileName = Arc<OsStr>;

/// What all files together say.
///
/// * The same object in two files: the file whose name sorts first has it. The other
///   one's is kept, and takes its place when the first one's goes away.
/// * A Service with both Endpoints and EndpointSlices: the slices count, as for
///   kube-proxy, which does not look at Endpoints any more.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    fold: Fold,
    files: BTreeMap<FileName, Vec<ManifestKey>>,
    owners: BTreeMap<ManifestKey, FileName>,
    /// Objects that another file has a better claim to. The others are in `fold` alone:
    /// most objects are in one file only, and are not kept twice.
    shadowed: BTreeMap<ManifestKey, BTreeMap<FileName, Manifest>>,
    /// Endpoints objects in force, whether their Service has slices or not.
    endpoints: BTreeMap<ObjectName, Vec<EndpointSlice>>,
    /// Whether slices or Endpoints changed, so that one may give way to the other.
    unsettled: bool,
}

/// What came of a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Whether the catalog is different.
    pub(crate) changed: bool,
    /// Objects of the file that another file has too, with that file's name.
    pub(crate) conflicts: Vec<Conflict>,
}

/// One object in two files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) object: ManifestKey,
    /// Whose object is in force.
    pub(crate) winner: FileName,
    /// Whose object is not.
    pub(crate) loser: FileName,
}

impl Overlay {
    /// The catalog as of now.
    pub(crate) fn catalog(&self) -> Catalog {
        self.fold.catalog()
    }

    /// Gives memory back after very many changes, see [`Fold::pack`].
    pub(crate) fn pack(&mut self) {
        self.fold.pack();
        self.files = std::mem::take(&mut self.files).into_iter().collect();
        self.owners = std::mem::take(&mut self.owners).into_iter().collect();
    }

    /// Makes `objects`, of which no two have the same key, all that a file says.
    pub(crate) fn put_file(&mut self, file: &FileName, objects: Vec<Manifest>) -> Effect {
        let mut gone: BTreeSet<ManifestKey> =
            self.files.remove(file).into_iter().flatten().collect();
        let mut effect = Effect::default();
        let mut keys = Vec::with_capacity(objects.len());
        for object in objects {
            let key = object.key();
            let is_new = !gone.remove(&key);
            let (changed, conflict) = self.claim(file, &key, object);
            effect.changed |= changed;
            effect.conflicts.extend(conflict.filter(|_| is_new));
            keys.push(key);
        }
        for key in gone {
            effect.changed |= self.release(file, &key);
        }
        if !keys.is_empty() {
            self.files.insert(file.clone(), keys);
        }
        effect.changed |= self.settle_endpoints();
        effect
    }

    /// A file is gone. Returns whether the catalog changed.
    pub(crate) fn remove_file(&mut self, file: &FileName) -> bool {
        self.put_file(file, Vec::new()).changed
    }

    fn claim(
        &mut self,
        file: &FileName,
        key: &ManifestKey,
        object: Manifest,
    ) -> (bool, Option<Conflict>) {
        let owner = self.owners.get(key).cloned();
        let conflict = |winner: &FileName, loser: &FileName| Conflict {
            object: key.clone(),
            winner: winner.clone(),
            loser: loser.clone(),
        };
        match owner {
            Some(owner) if owner < *file => {
                let conflict = conflict(&owner, file);
                let claims = self.shadowed.entry(key.clone()).or_default();
                claims.insert(file.clone(), object);
                (false, Some(conflict))
            }
            Some(owner) if owner > *file => {
                let conflict = conflict(file, &owner);
                if let Some(known) = self.in_force(key, &object) {
                    let claims = self.shadowed.entry(key.clone()).or_default();
                    claims.insert(owner, known);
                }
                self.owners.insert(key.clone(), file.clone());
                (self.put_in_force(object), Some(conflict))
            }
            Some(_) | None => {
                self.owners.insert(key.clone(), file.clone());
                (self.put_in_force(object), None)
            }
        }
    }

    fn release(&mut self, file: &FileName, key: &ManifestKey) -> bool {
        let is_owner = self.owners.get(key) == Some(file);
        let mut claims = self.shadowed.remove(key).unwrap_or_default();
        let changed = if is_owner {
            match claims.pop_first() {
                Some((heir, object)) => {
                    self.owners.insert(key.clone(), heir);
                    self.put_in_force(object)
                }
                None => {
                    self.owners.remove(key);
                    self.take_out_of_force(key)
                }
            }
        } else {
            claims.remove(file);
            false
        };
        if !claims.is_empty() {
            self.shadowed.insert(key.clone(), claims);
        }
        changed
    }

    /// The object in force under `key`; `like` has that key too.
    fn in_force(&self, key: &ManifestKey, like: &Manifest) -> Option<Manifest> {
        let catalog = self.fold.catalog();
        match like {
            Manifest::Service(_) => catalog
                .service(&key.name)
                .map(|known| Manifest::Service((**known).clone())),
            Manifest::Node(node) => catalog
                .node(&node.name)
                .map(|known| Manifest::Node((**known).clone())),
            Manifest::MeshNode(node) => catalog
                .mesh_node(&node.name)
                .map(|known| Manifest::MeshNode(Box::new((**known).clone()))),
            Manifest::Endpoints(_) => self.endpoints.get(&key.name).map(|slices| {
                Manifest::Endpoints(Endpoints {
                    name: key.name.clone(),
                    slices: slices.clone(),
                })
            }),
            // Most probably it belongs to the same Service; else it has to be looked for.
            Manifest::Slice(slice) => catalog
                .slices_of(&slice.service_name())
                .chain(catalog.slices())
                .find(|known| known.name == key.name)
                .map(|known| Manifest::Slice((**known).clone())),
        }
    }

    fn put_in_force(&mut self, object: Manifest) -> bool {
        match object {
            Manifest::Service(service) => self.fold.apply(Change::Service(service)),
            Manifest::Node(node) => self.fold.apply(Change::Node(node)),
            Manifest::MeshNode(node) => self.fold.apply(Change::MeshNode(*node)),
            Manifest::Slice(slice) => {
                self.unsettled = true;
                self.fold.apply(Change::Slice(slice))
            }
            Manifest::Endpoints(Endpoints { name, slices }) => {
                self.unsettled = true;
                self.endpoints.insert(name, slices);
                false
            }
        }
    }

    fn take_out_of_force(&mut self, key: &ManifestKey) -> bool {
        match key.kind {
            ManifestKind::Service => self.fold.apply(Change::ServiceGone(key.name.clone())),
            ManifestKind::Node => {
                let name = NodeName::new(key.name.name());
                self.fold.apply(Change::NodeGone(name))
            }
            ManifestKind::MeshNode => {
                let name = NodeName::new(key.name.name());
                self.fold.apply(Change::MeshNodeGone(name))
            }
            ManifestKind::Slice => {
                self.unsettled = true;
                self.fold.apply(Change::SliceGone(key.name.clone()))
            }
            ManifestKind::Endpoints => {
                self.endpoints.remove(&key.name);
                let changes = self.endpoints_changes(&key.name, &[]);
                self.apply_all(changes)
            }
        }
    }

    /// Lets Endpoints take effect exactly where their Service has no slices.
    fn settle_endpoints(&mut self) -> bool {
        if !std::mem::take(&mut self.unsettled) {
            return false;
        }
        let changes = self
            .endpoints
            .iter()
            .flat_map(|(service, slices)| {
                let has_slices = self
                    .fold
                    .catalog()
                    .slices_of(service)
                    .any(|slice| !is_from_endpoints(&slice.name));
                self.endpoints_changes(service, if has_slices { &[] } else { slices })
            })
            .collect();
        self.apply_all(changes)
    }

    /// What makes `wanted` all that stands for the Endpoints of a Service.
    fn endpoints_changes(&self, service: &ObjectName, wanted: &[EndpointSlice]) -> Vec<Change> {
        let catalog = self.fold.catalog();
        let present = || {
            catalog
                .slices_of(service)
                .filter(|slice| is_from_endpoints(&slice.name))
        };
        let gone = present()
            .filter(|known| wanted.iter().all(|slice| slice.name != known.name))
            .map(|known| Change::SliceGone(known.name.clone()));
        let new = wanted
            .iter()
            .filter(|slice| present().all(|known| **known != **slice))
            .map(|slice| Change::Slice(slice.clone()));
        gone.chain(new).collect()
    }

    fn apply_all(&mut self, changes: Vec<Change>) -> bool {
        changes
            .into_iter()
            .fold(false, |changed, change| self.fold.apply(change) | changed)
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;

//! A folder of manifests that the agents of several nodes read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::manifests;
use crate::node::Node;
use crate::service::ClusterService;

/// What a cluster's API server is to its agents: the Nodes, the Services, and what agents
/// themselves put there. [`crate::Agent::prepare_sharing`] makes an agent read it.
#[derive(Debug)]
pub struct SharedManifests {
    folder: PathBuf,
    published: Mutex<BTreeSet<String>>,
}

impl SharedManifests {
    /// Makes the folder, with nothing in it.
    ///
    /// # Errors
    ///
    /// When the lab has one already.
    pub fn create(lab: &Lab) -> Result<Self> {
        Ok(Self {
            folder: lab.new_folder("shared-manifests")?,
            published: Mutex::new(BTreeSet::new()),
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes these the Services of the cluster, and takes away those that were published
    /// before and are not among them. Only files that change are written; files of others
    /// stay.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn publish(&self, services: &[ClusterService]) -> Result<()> {
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = manifests::put_services(&self.folder, services)?;
        for gone in published.difference(&wanted) {
            let path = self.folder.join(gone);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        *published = wanted;
        Ok(())
    }

    /// Puts the Node of `node` there, with its present addresses.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn publish_node(&self, node: &Node) -> Result<()> {
        let name = format!("node-{}.yaml", node.name());
        manifests::put(&self.folder, &name, &manifests::node(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_are_gone_go_and_what_others_have_put_stays() {
        let folder = tempfile::tempdir().unwrap();
        let shared = SharedManifests {
            folder: folder.path().to_owned(),
            published: Mutex::new(BTreeSet::new()),
        };
        let service = |name: &str| ClusterService::new(name).cluster_ip("10.96.0.9");
        manifests::put(folder.path(), "mesh-node.yaml", "anothers").unwrap();
        shared
            .publish(&[service("a/one"), service("a/two")])
            .unwrap();
        shared
            .publish(&[service("a/two"), service("b/three")])
            .unwrap();
        let files = fs::read_dir(folder.path()).unwrap();
        let names: BTreeSet<String> = files
            .map(|file| file.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        let expected = ["a.two.yaml", "b.three.yaml", "mesh-node.yaml"];
        assert_eq!(names, expected.map(str::to_owned).into());
    }
}

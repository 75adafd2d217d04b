//! The lab as the tests inside see it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};

use crate::network::Network;
use crate::node::NodeBuilder;

/// Private namespaces this process is inside of. Everything in it, processes too, is gone
/// when this process ends.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    usual_network: Mutex<Option<Arc<Network>>>,
    nodes: AtomicUsize,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let folder = PathBuf::from("/run/lab");
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self {
            folder,
            usual_network: Mutex::new(None),
            nodes: AtomicUsize::new(0),
        })
    }

    /// A folder of the lab's own, gone with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder inside [`Self::folder`].
    ///
    /// # Errors
    ///
    /// When it exists.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(path)
    }

    /// A node, by default on a segment that all such nodes share.
    pub fn node(&self, name: &str) -> NodeBuilder<'_> {
        NodeBuilder::new(self, name)
    }

    /// A further network segment: a /24 and a /64, given by their network addresses.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn network(&self, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Arc<Network>> {
        Network::create(name, v4, v6).map(Arc::new)
    }

    /// The segment of all nodes that are put on no other: 198.51.100.0/24 and
    /// 2001:db8:100::/64, both reserved for documentation (RFC 5737, RFC 3849).
    pub(crate) fn usual_network(&self) -> Result<Arc<Network>> {
        let Ok(mut known) = self.usual_network.lock() else {
            bail!("an earlier attempt to make the usual network failed");
        };
        if let Some(network) = &*known {
            return Ok(Arc::clone(network));
        }
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0);
        let network = self.network("network", Ipv4Addr::new(198, 51, 100, 0), v6)?;
        *known = Some(Arc::clone(&network));
        Ok(network)
    }

    /// Nodes are numbered from 1 over all networks.
    pub(crate) fn next_node(&self) -> usize {
        self.nodes.fetch_add(1, Ordering::Relaxed) + 1
    }
}

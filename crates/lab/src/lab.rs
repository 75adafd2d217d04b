//! The lab as the tests inside see it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::internet::Internet;
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
        fs::create_dir(&folder)
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
        fs::create_dir(&path)
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

    /// An internet, for sites with NATs; a lab has one at most.
    ///
    /// # Errors
    ///
    /// When there is one already.
    pub fn internet(&self) -> Result<Internet> {
        Internet::create()
    }

    /// Makes the programs in /usr/sbin and /sbin whose names begin with `prefix` impossible
    /// to find, as on a host where they are not installed. For the rest of the lab's time.
    ///
    /// # Errors
    ///
    /// The kernel's and the file system's.
    pub fn hide_programs(&self, prefix: &str) -> Result<()> {
        for folder in ["/usr/sbin", "/sbin"].map(Path::new) {
            if folder.is_dir() && !folder.is_symlink() {
                self.hide_in(folder, prefix)
                    .with_context(|| format!("cannot hide {prefix}* in {}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// Mounts a folder of links to all the others over `folder`.
    fn hide_in(&self, folder: &Path, prefix: &str) -> Result<()> {
        let name = format!("{}-{prefix}", folder.to_string_lossy().replace('/', "-"));
        let (all, shown) = (
            self.new_folder(&format!("all{name}"))?,
            self.new_folder(&format!("shown{name}"))?,
        );
        bind(folder, &all)?;
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            if !name.to_string_lossy().starts_with(prefix) {
                symlink(all.join(&name), shown.join(&name))?;
            }
        }
        bind(&shown, folder)
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

fn bind(from: &Path, to: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot mount {} on {}", from.display(), to.display()))
}

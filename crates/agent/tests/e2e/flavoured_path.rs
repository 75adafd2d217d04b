//! A `PATH` whose plain `iptables` is of one flavour, as a distribution's alternatives
//! make it: kube-proxy takes what it finds.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgemesh_lab::{Family, Flavour};

/// Makes `folder` and returns the `PATH` that begins with it.
pub(crate) fn flavoured_path(folder: &Path, flavour: Flavour) -> Result<OsString> {
    let path = env::var_os("PATH").context("PATH is not set")?;
    // A user's PATH often lacks the folders of the administrator's programs.
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for family in Family::ALL {
        for action in ["", "save", "restore"] {
            let plain = [family.command(), action].join("-");
            let tool = flavour.tool(family, action);
            let found = folders
                .iter()
                .map(|folder| folder.join(&tool))
                .find(|path| path.exists())
                .with_context(|| format!("there is no {tool} in PATH: install iptables"))?;
            symlink(found, folder.join(plain.trim_end_matches('-')))?;
        }
    }
    folders.insert(0, folder.to_owned());
    env::join_paths(folders).context("PATH")
}

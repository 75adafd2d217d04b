//! Who takes part on one node, and how each is set up.

pub mod agent_start;
mod haproxy;
mod nginx;
mod ready;
pub mod wireguard;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use edgemesh_lab::{
    Background, ClusterService, Flavour, KubeProxy, KubeProxyMode, Node, Place, await_ok,
};

pub use ready::Ready;
pub(crate) use ready::sum_of_samples;

/// How long a contender may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// How rules get into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// By iptables, in the flavour that writes to nf_tables.
    Iptables,
    /// By a table of nf_tables.
    Nftables,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Nftables];

    /// As `modules.edgeProxy.backend` and kube-proxy's `--proxy-mode` have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// `modules.edgeProxy.datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datapath {
    /// The kernel takes what this node reaches by itself.
    Hybrid,
    /// The agent takes everything.
    User,
}

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The server's own address, nobody between.
    Direct,
    /// kube-proxy's rules.
    KubeProxy(Backend),
    /// The agent, beside kube-proxy's rules of the same kind for the same Services.
    Agent(Datapath, Backend),
    /// HAProxy in TCP mode.
    Haproxy {
        /// With splice(2) in both directions, whatever it thinks of that.
        splice: bool,
    },
    /// nginx's stream module.
    Nginx,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.pad("direct"),
            Self::KubeProxy(backend) => write!(f, "kube-proxy's rules, {}", backend.name()),
            Self::Agent(Datapath::Hybrid, backend) => {
                write!(f, "agent, kernel path, {}", backend.name())
            }
            Self::Agent(Datapath::User, backend) => {
                write!(f, "agent, user path, {}", backend.name())
            }
            Self::Haproxy { splice: true } => f.pad("HAProxy, forced splice"),
            Self::Haproxy { splice: false } => f.pad("HAProxy"),
            Self::Nginx => f.pad("nginx stream"),
        }
    }
}

impl Contender {
    /// All, in the order of tables.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Direct];
        all.extend(Backend::ALL.map(Self::KubeProxy));
        all.extend(Backend::ALL.map(|backend| Self::Agent(Datapath::Hybrid, backend)));
        all.extend([
            Self::Haproxy { splice: true },
            Self::Haproxy { splice: false },
            Self::Nginx,
        ]);
        all.extend(Backend::ALL.map(|backend| Self::Agent(Datapath::User, backend)));
        all
    }

    /// Whether datagrams are its business.
    #[must_use]
    pub fn takes_datagrams(self) -> bool {
        !matches!(self, Self::Haproxy { .. })
    }

    /// Whether a process of its own carries the bytes.
    #[must_use]
    pub fn is_in_user_mode(self) -> bool {
        match self {
            Self::Direct | Self::KubeProxy(_) | Self::Agent(Datapath::Hybrid, _) => false,
            Self::Agent(Datapath::User, _) | Self::Haproxy { .. } | Self::Nginx => true,
        }
    }

    /// What has to be installed for it, as `apt-get install` knows it; `None` when it is.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Self::Haproxy { .. } if find("haproxy").is_none() => Some("haproxy"),
            Self::Nginx if find("nginx").is_none() || !Path::new(nginx::STREAM).exists() => {
                Some("nginx libnginx-mod-stream")
            }
            Self::Haproxy { .. }
            | Self::Nginx
            | Self::Direct
            | Self::KubeProxy(_)
            | Self::Agent(..) => None,
        }
    }

    /// A name for namespaces: devices' names are short.
    fn short(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubeProxy(Backend::Iptables) => "kp-ipt",
            Self::KubeProxy(Backend::Nftables) => "kp-nft",
            Self::Agent(Datapath::Hybrid, Backend::Iptables) => "ak-ipt",
            Self::Agent(Datapath::Hybrid, Backend::Nftables) => "ak-nft",
            Self::Agent(Datapath::User, Backend::Iptables) => "au-ipt",
            Self::Agent(Datapath::User, Backend::Nftables) => "au-nft",
            Self::Haproxy { splice: true } => "haproxy-s",
            Self::Haproxy { splice: false } => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Where a program is, in `PATH` or where Debian puts those of the administrator.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Writes kube-proxy's rules.
///
/// # Errors
///
/// Those of iptables and nft.
pub fn rules(node: &Node, backend: Backend, services: &[ClusterService]) -> Result<KubeProxy> {
    let mode = match backend {
        Backend::Iptables => KubeProxyMode::Iptables(Flavour::Nft),
        Backend::Nftables => KubeProxyMode::Nftables,
    };
    KubeProxy::start(node, mode, services)
}

/// Waits until a program listens on `to`.
fn await_listening(program: &mut Background, place: &impl Place, to: SocketAddr) -> Result<()> {
    await_ok(PATIENCE, "it listens", || {
        if program.ended()?.is_some() {
            return Ok(());
        }
        place.connect(to)?;
        Ok(())
    })?;
    if let Some(status) = program.ended()? {
        bail!("it ended ({status}):\n{}", program.log_tail(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_have_names_of_their_own_that_fit_a_device() {
        let all = Contender::all();
        for (place, one) in all.iter().enumerate() {
            assert!(one.short().len() <= 9);
            for other in &all[..place] {
                assert_ne!(one.short(), other.short());
                assert_ne!(one.to_string(), other.to_string());
            }
        }
        assert_eq!(all[0], Contender::Direct, "tables compare with it");
    }

    #[test]
    fn what_is_nowhere_is_not_found() {
        assert!(find("sh").is_some());
        assert!(find("no-program-has-this-name").is_none());
    }
}

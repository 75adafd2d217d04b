//! Who is measured.

use std::fmt;

use edgemesh_lab::{Flavour, Inside};

/// From this many Services on, kube-proxy's transaction is too long for iptables-nft in a
/// user namespace (some 270 rules fit, and each Service with two endpoints has six).
const MOST_IN_USER_NAMESPACE: usize = 40;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// The agent, reading a folder of manifests, a file for each Service.
    AgentOfManifests,
    /// The agent, reading from the API server.
    AgentOfApi,
    /// kube-proxy in iptables mode, with its default sync periods.
    KubeProxy,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentOfManifests => "agent, manifests",
            Self::AgentOfApi => "agent, API server",
            Self::KubeProxy => "kube-proxy, API server",
        })
    }
}

impl Contender {
    /// Why kube-proxy can't take part, if it can't.
    pub(crate) fn why_kube_proxy_cannot(
        inside: &Inside,
        flavour: Flavour,
        count: usize,
    ) -> Option<&'static str> {
        let cannot = inside.is_in_user_namespace()
            && flavour == Flavour::Nft
            && count > MOST_IN_USER_NAMESPACE;
        cannot.then_some(
            "within a user namespace iptables-nft-restore can't take so many rules at once; \
             run this as root, or with --flavours legacy",
        )
    }
}

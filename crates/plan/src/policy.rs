//! What the operator decided for this node, and what the node can do.

use edgemesh_catalog::NodeName;

use crate::{DatapathMode, HostFacts};

/// Which Services the filter label exempts (`modules.edgeProxy.serviceFilterMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterMode {
    /// Services with the label are left to kube-proxy; all others are intercepted.
    #[default]
    IfLabelExists,
    /// Services without the label are left to kube-proxy; only labelled ones are intercepted.
    IfLabelDoesNotExist,
}

/// Everything besides the catalog that a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The node that is planned for.
    pub node: NodeName,
    /// Meaning of the filter label.
    pub filter: FilterMode,
    /// Whether this host can intercept IPv4.
    pub ipv4: bool,
    /// Whether this host can intercept IPv6.
    pub ipv6: bool,
    /// Who may take connections to endpoints.
    pub datapath: DatapathMode,
    /// What its kernel can do about that.
    pub host: HostFacts,
}

impl Policy {
    /// That of a node which can do everything, with an operator who changed nothing.
    #[must_use]
    pub fn of(node: NodeName) -> Self {
        Self {
            node,
            filter: FilterMode::default(),
            ipv4: true,
            ipv6: true,
            datapath: DatapathMode::default(),
            host: HostFacts::default(),
        }
    }
}

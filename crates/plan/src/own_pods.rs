//! Which endpoints are pods of this node, with addresses of their own.

use std::net::IpAddr;

use edgemesh_catalog::{Catalog, NodeName};

use crate::{Policy, PortalEndpoint};

/// Tells this node's pods from what else is an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPods<'a> {
    node: &'a NodeName,
    /// Also those of its pods on the host's network.
    node_addresses: &'a [IpAddr],
}

impl<'a> OwnPods<'a> {
    /// The pods of the policy's node. A node that the catalog does not know has no address
    /// of its own.
    #[must_use]
    pub fn of(catalog: &'a Catalog, policy: &'a Policy) -> Self {
        Self {
            node: &policy.node,
            node_addresses: catalog
                .node(&policy.node)
                .map_or(&[], |node| &node.addresses),
        }
    }

    /// Whether `endpoint` is one: it may connect to itself through its Service.
    #[must_use]
    pub fn has(&self, endpoint: &PortalEndpoint) -> bool {
        endpoint.node.as_ref() == Some(self.node)
            && !self.node_addresses.contains(&endpoint.address.ip())
    }
}

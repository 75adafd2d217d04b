//! What this node's exit may dial on behalf of other nodes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use edgemesh_catalog::{Catalog, Endpoint, Protocol, Service, ServicePort, ServicePortName};

use crate::topology::{is_dialable, listed};
use crate::{LeftAlone, Policy, filter};

/// The endpoints of one catalog that other nodes may be connected with by this one.
///
/// Peers ask for what *their* catalog says; only this node's own one decides.
#[derive(Debug)]
pub struct Exits {
    catalog: Catalog,
    policy: Policy,
    /// ClusterIPs of all Services. Made by the first request: most catalogs of a node
    /// that nobody asks are replaced before one comes.
    cluster_ips: OnceLock<BTreeSet<IpAddr>>,
}

/// Why the exit does not dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotExitable {
    /// It is no endpoint on this node of that service port, or none that may be dialled.
    NotAnEndpoint,
    /// The Service is left to kube-proxy, by its filter label or the lack of one.
    Filtered,
}

impl fmt::Display for NotExitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotExitable::NotAnEndpoint => "not an endpoint on this node",
            NotExitable::Filtered => "the Service is left to kube-proxy",
        })
    }
}

impl std::error::Error for NotExitable {}

impl Exits {
    /// What may be dialled by `catalog` on the node of `policy`.
    #[must_use]
    pub fn new(catalog: Catalog, policy: Policy) -> Self {
        Self {
            catalog,
            policy,
            cluster_ips: OnceLock::new(),
        }
    }

    /// The catalog that it follows.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What the operator decided.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a peer may be connected with `endpoint`, which it takes for one of
    /// `service_port`. The endpoint's state does not matter: the peer has chosen by its own
    /// catalog, and an endpoint that is ending must still be reached.
    ///
    /// # Errors
    ///
    /// Why not. Which of several reasons is told is fixed: what exists not at all comes first.
    pub fn may_exit(
        &self,
        service_port: &ServicePortName,
        endpoint: SocketAddr,
    ) -> Result<(), NotExitable> {
        let service = self
            .catalog
            .service(&service_port.service)
            .ok_or(NotExitable::NotAnEndpoint)?;
        self.service_is_ours(service)?;
        let here = |listed: &Endpoint| listed.node.as_ref() == Some(&self.policy.node);
        let may = port_of(service, service_port).is_some_and(|port| {
            listed(&self.catalog, service, port)
                .any(|(address, listed)| address == endpoint && here(listed))
        }) && is_dialable(endpoint.ip())
            // The way to a ClusterIP may lead back into a tunnel.
            && !self.cluster_ips().contains(&endpoint.ip());
        may.then_some(()).ok_or(NotExitable::NotAnEndpoint)
    }

    fn service_is_ours(&self, service: &Service) -> Result<(), NotExitable> {
        match filter::left_alone(service, self.policy.filter) {
            None => Ok(()),
            Some(LeftAlone::FilterLabel | LeftAlone::NoFilterLabel) => Err(NotExitable::Filtered),
            // No agent has a portal that could lead here.
            Some(
                LeftAlone::Headless
                | LeftAlone::ExternalName
                | LeftAlone::NoClusterIp
                | LeftAlone::Sctp
                | LeftAlone::NoIpv4
                | LeftAlone::NoIpv6
                | LeftAlone::UnusableClusterIp
                | LeftAlone::FrontendTaken(_),
            ) => Err(NotExitable::NotAnEndpoint),
        }
    }

    fn cluster_ips(&self) -> &BTreeSet<IpAddr> {
        self.cluster_ips.get_or_init(|| {
            self.catalog
                .services()
                .flat_map(|service| service.cluster_ips.iter().copied())
                .collect()
        })
    }
}

/// The port of that name and protocol. SCTP is carried by nobody.
fn port_of<'s>(service: &'s Service, name: &ServicePortName) -> Option<&'s ServicePort> {
    let mut ports = service.ports.iter();
    ports
        .find(|port| port.name == name.port && port.protocol == name.protocol)
        .filter(|port| port.protocol != Protocol::Sctp)
}

#[cfg(test)]
#[path = "exit_tests.rs"]
mod tests;

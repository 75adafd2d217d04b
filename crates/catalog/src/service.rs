//! A Service, reduced to what a node agent acts on.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ObjectName, ServicePortName};

/// The label that tells the agent to leave a Service alone, whatever its value
/// (also the empty one). `EdgeMesh`'s name, so that labelled clusters keep working.
pub const FILTER_LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the default of the Kubernetes API.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: known, but not intercepted.
    Sctp,
}

impl Protocol {
    /// Lower-case name, as netfilter writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A protocol that the Kubernetes API does not define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProtocol(pub String);

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "protocol {:?} is none of TCP, UDP, SCTP; write one of these",
            self.0
        )
    }
}

impl std::error::Error for UnknownProtocol {}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    /// Parses the Kubernetes API's spelling (`TCP`, `UDP`, `SCTP`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            other => Err(UnknownProtocol(other.to_owned())),
        }
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Reachable by its ClusterIPs only.
    ClusterIp,
    /// Reachable by a port of every node as well.
    NodePort,
    /// Reachable by addresses of a load balancer as well.
    LoadBalancer,
    /// A DNS alias without addresses.
    ExternalName,
}

/// `spec.internalTrafficPolicy`: which endpoints traffic from inside the cluster may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints on the client's own node only; without one, traffic is refused.
    Local,
}

/// A Service as far as the agent needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs` (or `spec.clusterIP` alone on servers before 1.20); empty when
    /// headless, when not yet assigned, and for `ExternalName`.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Whether [`FILTER_LABEL`] is present, with any value.
    pub filter_label: bool,
    /// `sessionAffinity: ClientIP` with its timeout; none when affinity is off.
    pub session_affinity: Option<Duration>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// One entry of `spec.ports`. The target port is not kept: endpoint slices carry
/// it already resolved, under the same port name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; may be empty when it is the only port.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the ClusterIP.
    pub port: u16,
}

impl Service {
    /// Full name of one of this Service's ports.
    #[must_use]
    pub fn port_name(&self, port: &ServicePort) -> ServicePortName {
        ServicePortName {
            service: self.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        }
    }
}

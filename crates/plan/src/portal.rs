//! Portals: the addresses that the agent answers for, and what becomes of their traffic.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{NodeName, Protocol, ServicePortName};

use crate::{Datapath, Way};

/// An address, protocol and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The ClusterIP.
    pub ip: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the ClusterIP.
    pub port: u16,
}

impl Frontend {
    /// Address and port without the protocol.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket_addr(), self.protocol)
    }
}

/// What is planned for one service port, intercepted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortPlan {
    /// The service port.
    pub name: ServicePortName,
    /// How long a client keeps its endpoint (`sessionAffinity: ClientIP`); none when off.
    pub affinity: Option<Duration>,
    /// Why the port as a whole has no portal of ours; none when it has some.
    pub left_alone: Option<LeftAlone>,
    /// One portal per ClusterIP; empty when the port is left alone.
    pub portals: Vec<Portal>,
}

impl ServicePortPlan {
    /// Its portals that get a rule of ours.
    pub fn intercepted(&self) -> impl Iterator<Item = &Portal> {
        self.portals.iter().filter(|portal| match portal.target {
            Target::Forward { .. } | Target::Refuse(_) => true,
            Target::LeaveAlone(_) => false,
        })
    }
}

/// One frontend of a service port and what becomes of its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// Where clients connect to.
    pub frontend: Frontend,
    /// What becomes of them.
    pub target: Target,
}

/// What becomes of traffic to a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// It goes to one of these endpoints.
    Forward {
        /// The usable endpoints. Never empty; sorted by address, without duplicates.
        endpoints: Arc<[PortalEndpoint]>,
        /// How they were chosen among all.
        choice: EndpointChoice,
        /// Who takes it there.
        datapath: Datapath,
    },
    /// It is refused at once, as kube-proxy's REJECT does.
    Refuse(Refusal),
    /// No rule of ours; whoever else serves the frontend goes on doing so.
    LeaveAlone(LeftAlone),
}

/// An endpoint that a portal may lead to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortalEndpoint {
    /// Address and port to dial.
    pub address: SocketAddr,
    /// The node that it runs on; none for endpoints outside the cluster.
    pub node: Option<NodeName>,
    /// The way to it. Never [`Way::Tunnel`] without a node.
    pub way: Way,
}

/// How the usable endpoints were chosen (kube-proxy's `CategorizeEndpoints`,
/// kubernetes `pkg/proxy/topology.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointChoice {
    /// All ready ones.
    Ready,
    /// The ready ones that topology hints name this node for.
    HintedForNode,
    /// The ready ones that topology hints name this node's zone for.
    HintedForZone,
    /// The ready ones on this node: `internalTrafficPolicy: Local`.
    ReadyOnNode,
    /// None is ready, so those that are shutting down and still answer.
    ServingTerminating,
    /// `internalTrafficPolicy: Local`, and those on this node that still answer.
    ServingTerminatingOnNode,
}

/// Why traffic to a portal is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// No endpoint is ready, nor does one that is shutting down still answer.
    NoEndpoints,
    /// `internalTrafficPolicy: Local` and none of the usable endpoints is on this node.
    NoEndpointsOnNode,
}

/// Why a service port or one of its frontends has no rule of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftAlone {
    /// The filter label is present, and the filter mode exempts such Services.
    FilterLabel,
    /// The filter label is absent, and the filter mode intercepts labelled Services only.
    NoFilterLabel,
    /// `clusterIP: None`: clients connect to the endpoints themselves.
    Headless,
    /// `type: ExternalName`: a DNS alias.
    ExternalName,
    /// The API server has not assigned a ClusterIP yet.
    NoClusterIp,
    /// SCTP is not intercepted.
    Sctp,
    /// The host has no IPv4, or its NAT cannot be programmed.
    NoIpv4,
    /// The host has no IPv6, or its NAT cannot be programmed.
    NoIpv6,
    /// Not an address that can belong to a Service (unspecified, loopback, link-local or
    /// multicast).
    UnusableClusterIp,
    /// Another service port has the same frontend. It keeps it. (In a box, so that this rare
    /// case does not double the size of every portal.)
    FrontendTaken(Box<ServicePortName>),
}

impl fmt::Display for EndpointChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndpointChoice::Ready => "all ready endpoints",
            EndpointChoice::HintedForNode => "ready endpoints hinted for this node",
            EndpointChoice::HintedForZone => "ready endpoints hinted for this node's zone",
            EndpointChoice::ReadyOnNode => {
                "ready endpoints on this node (internalTrafficPolicy: Local)"
            }
            EndpointChoice::ServingTerminating => {
                "no endpoint is ready; those terminating that still serve"
            }
            EndpointChoice::ServingTerminatingOnNode => {
                "no endpoint on this node is ready; those terminating that still serve \
                 (internalTrafficPolicy: Local)"
            }
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NoEndpoints => "has no ready endpoints",
            Refusal::NoEndpointsOnNode => {
                "has no ready endpoints on this node (internalTrafficPolicy: Local)"
            }
        })
    }
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeftAlone::FilterLabel => {
                f.write_str("carries the filter label (serviceFilterMode: FilterIfLabelExists)")
            }
            LeftAlone::NoFilterLabel => f.write_str(
                "lacks the filter label (serviceFilterMode: FilterIfLabelDoesNotExists)",
            ),
            LeftAlone::Headless => f.write_str("headless (clusterIP: None)"),
            LeftAlone::ExternalName => f.write_str("type ExternalName has no ClusterIP"),
            LeftAlone::NoClusterIp => f.write_str("no ClusterIP is assigned yet"),
            LeftAlone::Sctp => f.write_str("SCTP is not intercepted"),
            LeftAlone::NoIpv4 => f.write_str("this host cannot intercept IPv4"),
            LeftAlone::NoIpv6 => f.write_str("this host cannot intercept IPv6"),
            LeftAlone::UnusableClusterIp => f.write_str("not a usable ClusterIP"),
            LeftAlone::FrontendTaken(by) => write!(f, "the same address and port belong to {by}"),
        }
    }
}

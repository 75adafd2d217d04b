//! Endpoint slices. Objects of the older core/v1 Endpoints kind are turned into
//! the same shape by the sources, so that everything behind them knows one form.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{NodeName, ObjectName, Protocol};

/// One `discovery.k8s.io/v1` EndpointSlice: the endpoints of one Service in one
/// address family, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`), in the same namespace.
    pub service: Arc<str>,
    /// Ports, shared by all endpoints of the slice. Ports without a number are left out.
    pub ports: Vec<EndpointPort>,
    /// Endpoints, in the order of the object.
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// Namespace and name of the Service that the slice belongs to.
    #[must_use]
    pub fn service_name(&self) -> ObjectName {
        ObjectName::new(self.name.namespace(), self.service.clone())
    }
}

/// A port of a slice: the Service's port of the same name and protocol leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name of the Service's port; empty when unnamed.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the endpoint's address.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address: the first of the API's list, as kube-proxy takes it
    /// (kubernetes `pkg/proxy/endpointslicecache.go`).
    pub address: IpAddr,
    /// The node that it runs on; none for endpoints outside the cluster.
    pub node: Option<NodeName>,
    /// Whether it takes traffic.
    pub state: EndpointState,
    /// Topology hints, when the control plane gave any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<Box<EndpointHints>>,
}

/// Whether an endpoint takes traffic, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EndpointState {
    /// Takes traffic.
    Ready,
    /// Is shutting down but still answers: used when no endpoint is ready.
    ServingTerminating,
    /// Takes none.
    NotReady,
}

impl EndpointState {
    /// From the API's conditions, each of which may be absent.
    ///
    /// An absent `ready` counts as true, an absent `serving` as `ready`, an absent
    /// `terminating` as false (EndpointConditions in the `discovery.k8s.io/v1` API). A
    /// ready endpoint is used even while terminating: `publishNotReadyAddresses`
    /// makes such ones.
    #[must_use]
    pub fn from_conditions(
        ready: Option<bool>,
        serving: Option<bool>,
        terminating: Option<bool>,
    ) -> Self {
        let ready = ready.unwrap_or(true);
        let serving = serving.unwrap_or(ready);
        let terminating = terminating.unwrap_or(false);
        if ready {
            EndpointState::Ready
        } else if serving && terminating {
            EndpointState::ServingTerminating
        } else {
            EndpointState::NotReady
        }
    }
}

/// Which clients should prefer an endpoint (`hints` of the EndpointSlice API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHints {
    /// Zones whose nodes should use it.
    pub zones: Vec<Arc<str>>,
    /// Nodes that should use it.
    pub nodes: Vec<NodeName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_conditions_mean_ready() {
        assert_eq!(
            EndpointState::from_conditions(None, None, None),
            EndpointState::Ready
        );
    }

    #[test]
    fn terminating_endpoint_that_still_serves_is_the_second_choice() {
        assert_eq!(
            EndpointState::from_conditions(Some(false), Some(true), Some(true)),
            EndpointState::ServingTerminating
        );
    }

    #[test]
    fn serving_without_terminating_is_not_ready() {
        assert_eq!(
            EndpointState::from_conditions(Some(false), Some(true), None),
            EndpointState::NotReady
        );
        assert_eq!(
            EndpointState::from_conditions(Some(false), None, Some(true)),
            EndpointState::NotReady
        );
    }

    #[test]
    fn ready_wins_over_terminating() {
        assert_eq!(
            EndpointState::from_conditions(Some(true), Some(true), Some(true)),
            EndpointState::Ready
        );
    }
}

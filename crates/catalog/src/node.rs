//! A Node, reduced to where it is and which pods it holds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::NodeName;

/// A Node as far as the agent needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Label `topology.kubernetes.io/zone`; decides which topology hints are meant for it.
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs` (or `spec.podCIDR` alone).
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` that are IP addresses, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// Its labels, as far as somebody selects nodes by them: all labels of thousands of nodes
    /// would take more memory than all else that is known of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

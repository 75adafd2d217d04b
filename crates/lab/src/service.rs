//! A Service with its endpoints, as little of it as rules and manifests need.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::pod::Pod;

/// A Service and its endpoints. Names and addresses are taken as they are given: a lab
/// also wants to say wrong things.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ClusterService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its cluster IPs; none makes it headless.
    pub cluster_ips: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How many seconds a client keeps its endpoint (`sessionAffinity: ClientIP`); none: not
    /// at all.
    pub affinity_seconds: Option<u32>,
    /// What answers for it.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a [`ClusterService`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be empty where it is the only one.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port clients know.
    pub port: u16,
    /// The port its endpoints listen on.
    pub target: u16,
    /// The name under which the Service asks its pods for the target port, instead of its
    /// number. Endpoints carry the number in either case.
    pub target_name: Option<String>,
}

/// An address that answers for a [`ClusterService`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// The node it is on.
    pub node: Option<String>,
    /// Whether it takes new connections.
    pub ready: bool,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As iptables writes it.
    #[must_use]
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn upper(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl ClusterService {
    /// A Service called `namespace/name` (`name` alone: in `default`), without anything yet.
    pub fn new(name: &str) -> Self {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            affinity_seconds: None,
            endpoints: Vec::new(),
        }
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a label away.
    pub fn without_label(mut self, key: &str) -> Self {
        self.labels.remove(key);
        self
    }

    /// Adds a cluster IP.
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(address.to_owned());
        self
    }

    /// Adds a TCP port.
    pub fn tcp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, Protocol::Tcp, port, target)
    }

    /// Adds a UDP port.
    pub fn udp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, Protocol::Udp, port, target)
    }

    /// Makes the last port ask its pods for the target port by name.
    pub fn by_target_name(mut self, target_name: &str) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.target_name = Some(target_name.to_owned());
        }
        self
    }

    /// Makes a client keep its endpoint until it was silent for so long. The stand-in for
    /// kube-proxy does not follow.
    pub fn sticky(mut self, seconds: u32) -> Self {
        self.affinity_seconds = Some(seconds);
        self
    }

    /// Adds a pod as a ready endpoint.
    pub fn endpoint(mut self, pod: &Pod) -> Self {
        self.endpoints.push(Endpoint {
            addresses: pod.addresses(),
            node: Some(pod.node_name().to_owned()),
            ready: true,
        });
        self
    }

    /// Takes all endpoints away.
    pub fn without_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    fn port(mut self, name: &str, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort {
            name: name.to_owned(),
            protocol,
            port,
            target,
            target_name: None,
        });
        self
    }

    /// The name of one of its ports, `namespace/name:port`, or `namespace/name` for a port
    /// without a name (kube-proxy's ServicePortName).
    #[must_use]
    pub fn port_name(&self, port: &ServicePort) -> String {
        let (namespace, name) = (&self.namespace, &self.name);
        if port.name.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name}:{}", port.name)
        }
    }
}

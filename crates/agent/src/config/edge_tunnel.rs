//! `modules.edgeTunnel`, typed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// `modules.edgeTunnel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EdgeTunnelConfig {
    /// Whether other nodes are reached, and reach this one, through the tunnel.
    pub(crate) enable: bool,
    /// UDP port of the tunnel.
    pub(crate) listen_port: u16,
    /// Addresses at which this node can be reached from elsewhere, beside those that it finds
    /// out; without a port it is `listen_port`.
    pub(crate) advertise: Vec<AdvertisedAddress>,
    /// The nodes whose agents carry the traffic of those that can't reach each other.
    pub(crate) relay_nodes: Vec<RelayNode>,
    /// TCP port of the relay, where this node is one; none: `listen_port`.
    pub(crate) relay_listen_port: Option<u16>,
    /// UDP port at which a relay node tells others their address as seen from outside.
    pub(crate) address_discovery_port: u16,
    /// Whether connections with peers stay open when unused.
    pub(crate) keep_alive: bool,
    /// How much the tunnel takes on.
    pub(crate) limits: TunnelLimits,
}

/// `modules.edgeTunnel.tunnelLimitConfig`. A stream is a TCP connection or a UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunnelLimits {
    /// Whether the numbers count.
    pub(crate) enable: bool,
    /// Streams served for all peers at a time.
    pub(crate) streams_in: usize,
    /// Streams opened to all peers at a time.
    pub(crate) streams_out: usize,
    /// Streams served for one peer at a time.
    pub(crate) streams_in_per_peer: usize,
    /// Streams opened to one peer at a time.
    pub(crate) streams_out_per_peer: usize,
}

/// One of `modules.edgeTunnel.relayNodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayNode {
    /// The node's name.
    pub(crate) node_name: String,
    /// Where others reach its relay, best first.
    pub(crate) advertise_address: Vec<RelayAddress>,
}

/// Where a relay is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RelayAddress {
    /// An address or a name, IPv6 without brackets; without a port it is the relay's own.
    Host { host: String, port: Option<u16> },
    /// A whole URL, for a relay behind a proxy that speaks TLS or has another port.
    Url(String),
}

/// An address at which a node can be reached, and its port if it is another than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdvertisedAddress {
    /// The address.
    pub(crate) ip: IpAddr,
    /// The port, where something in front of the node has another.
    pub(crate) port: Option<u16>,
}

impl Default for EdgeTunnelConfig {
    fn default() -> Self {
        Self {
            // EdgeMesh's default.
            enable: false,
            listen_port: 20006,
            advertise: Vec::new(),
            relay_nodes: Vec::new(),
            relay_listen_port: None,
            address_discovery_port: 20009,
            keep_alive: false,
            limits: TunnelLimits::default(),
        }
    }
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            enable: true,
            streams_in: 10_240,
            streams_out: 10_240,
            streams_in_per_peer: 1024,
            streams_out_per_peer: 1024,
        }
    }
}

impl EdgeTunnelConfig {
    /// TCP port of the relay, where this node is one.
    #[must_use]
    pub(crate) fn relay_port(&self) -> u16 {
        self.relay_listen_port.unwrap_or(self.listen_port)
    }

    /// The entry of `relayNodes` for `node`, if it is to be a relay.
    #[must_use]
    #[cfg_attr(not(test), expect(dead_code, reason = "for the relay"))]
    pub(crate) fn relay_node(&self, node: &str) -> Option<&RelayNode> {
        self.relay_nodes
            .iter()
            .find(|relay| relay.node_name == node)
    }

    /// Addresses of this node that others are told.
    pub(crate) fn advertised(&self) -> impl Iterator<Item = SocketAddr> {
        self.advertise
            .iter()
            .map(|address| SocketAddr::new(address.ip, address.port.unwrap_or(self.listen_port)))
    }
}

impl RelayAddress {
    /// The relay's URL, for a relay that listens on `port`. Plain HTTP unless the operator
    /// wrote another: what is carried is encrypted anyway.
    #[must_use]
    #[cfg_attr(not(test), expect(dead_code, reason = "for the relay"))]
    pub(crate) fn url(&self, port: u16) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Host { host, port: own } => {
                let host = Self::Host {
                    host: host.clone(),
                    port: Some(own.unwrap_or(port)),
                };
                format!("http://{host}")
            }
        }
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Host { host, port: None } => f.write_str(host),
            Self::Host {
                host,
                port: Some(port),
            } if host.parse::<Ipv6Addr>().is_ok() => write!(f, "[{host}]:{port}"),
            Self::Host {
                host,
                port: Some(port),
            } => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for AdvertisedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

//! `modules.edgeTunnel`, typed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

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
    /// Whether connections that move much may go by TCP connections between the nodes.
    pub(crate) tcp_carrier: bool,
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

/// One of `modules.edgeTunnel.relayNodes`. Without a port an address has the relay's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayNode {
    /// The node's name.
    pub(crate) node_name: String,
    /// Where others reach its relay, best first.
    pub(crate) advertise_address: Vec<AdvertisedAddress>,
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
            tcp_carrier: true,
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

    /// Whether `node` is to be a relay.
    #[must_use]
    pub(crate) fn is_relay(&self, node: &str) -> bool {
        self.relay_nodes.iter().any(|relay| relay.node_name == node)
    }

    /// Addresses of this node that others are told.
    pub(crate) fn advertised(&self) -> impl Iterator<Item = SocketAddr> {
        self.advertise
            .iter()
            .map(|address| address.with_port(self.listen_port))
    }
}

impl AdvertisedAddress {
    /// The address with its port, or else `port`.
    #[must_use]
    pub(crate) fn with_port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
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

//! What the tunnel is told at its start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::NodeName;

use crate::relay_book::RelayNode;
use crate::relay_server::RelaySettings;

/// Everything the tunnel needs to know besides the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeName,
    /// Addresses to listen at, one of a family at most; IPv4 must work, IPv6 need not.
    /// [`Settings::of`] takes all.
    pub bind: Vec<IpAddr>,
    /// UDP port to listen at; when somebody else has it, any. Default 20006.
    pub listen_port: u16,
    /// Addresses by which others reach this node although it does not have them itself.
    /// Default none.
    pub advertise: Vec<SocketAddr>,
    /// Nodes that may be relays, and where they are. Empty: every peer that says it is one.
    /// Default empty.
    pub relay_nodes: Vec<RelayNode>,
    /// How this node is a relay, if it is one. Default none.
    pub relay: Option<RelaySettings>,
    /// Addresses of this host that peers are never told, such as the one that portals lead
    /// to. Default none.
    pub never: Vec<IpAddr>,
    /// Version of the agent, for others to see. Default empty.
    pub version: Arc<str>,
    /// Whether connections with peers stay when nobody uses them. Default false.
    pub keep_alive: bool,
    /// Whether streams that move much may have TCP connections of their own with peers where
    /// one can dial the other. Default true.
    pub tcp_carrier: bool,
    /// Firewall mark (`SO_MARK`) of the exit's sockets. Default none.
    pub mark: Option<u32>,
    /// How much it takes on.
    pub limits: Limits,
    /// How long things may take.
    pub timing: Timing,
}

impl Settings {
    /// The defaults, for `node`.
    #[must_use]
    pub fn of(node: NodeName) -> Self {
        Self {
            node,
            bind: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            listen_port: 20_006,
            advertise: Vec::new(),
            relay_nodes: Vec::new(),
            relay: None,
            never: Vec::new(),
            version: "".into(),
            keep_alive: false,
            tcp_carrier: true,
            mark: None,
            limits: Limits::default(),
            timing: Timing::default(),
        }
    }
}

/// How much the tunnel takes on. Beyond it the answer is "busy", at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams (connections and flows) that this node's exit serves for all peers. Default
    /// 10240 (EdgeMesh's `tunnelBaseStreamIn`).
    pub streams_in: usize,
    /// Streams that this node's exit serves for one peer. Default 1024.
    pub streams_in_per_peer: usize,
    /// Streams that this node opens to all peers. Default 10240.
    pub streams_out: usize,
    /// Streams that this node opens to one peer. Default 1024.
    pub streams_out_per_peer: usize,
    /// Handshakes with others under way at a time. Default 64.
    pub handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_in: 10_240,
            streams_in_per_peer: 1024,
            streams_out: 10_240,
            streams_out_per_peer: 1024,
            handshakes: 64,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One attempt to reach a peer. Default 3 s.
    pub connect: Duration,
    /// How long an endpoint may take to accept a connection from the exit. Default 2 s.
    pub dial: Duration,
    /// The part of it that an opener waits for when its client's first bytes came along: beyond
    /// it he may want to ask elsewhere, too, and is told that he can. Default 250 ms (RFC 8305
    /// section 8, "Connection Attempt Delay").
    pub at_once: Duration,
    /// How long a UDP flow without a datagram lives at the exit; the entry's own limit should
    /// be shorter, for only the entry knows the client. Default 90 s.
    pub udp_idle: Duration,
    /// A peer that was not heard of for this long counts as down for new streams; those that
    /// exist wait longer. Agents send something every 800 ms. Default 4 s.
    pub quiet: Duration,
    /// A peer that is wanted, and was not heard of for this long, is connected with anew,
    /// and its streams are given up for that. Without being wanted they wait for 90 s.
    /// Default 45 s.
    pub given_up: Duration,
    /// A connection without streams is closed after this time. Default 60 s.
    pub unused: Duration,
    /// How long a stream may take to say what it wants. Default 5 s.
    pub request: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            dial: Duration::from_secs(2),
            at_once: Duration::from_millis(250),
            udp_idle: Duration::from_secs(90),
            quiet: Duration::from_secs(4),
            given_up: Duration::from_secs(45),
            unused: Duration::from_secs(60),
            request: Duration::from_secs(5),
        }
    }
}

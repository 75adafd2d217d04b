//! Encrypted connections between the nodes of a cluster, straight or through relays, and the
//! exit that dials endpoints on behalf of other nodes.
//!
//! ```text
//! forwarder ── Tunnel::open_tcp(node, target) ── Link (one per peer) ── Session (a connection)
//!                                                                          │ a stream
//! endpoint  <── TCP or UDP ── Exit: is it an endpoint of mine? <───────────┘ on the peer's node
//! ```
//!
//! Who is a peer is decided by [`PeerBook`] from the cluster's MeshNodes and proved by the
//! TLS handshake (Ed25519 raw public keys, RFC 7250, inside QUIC, RFC 9000). What a peer may
//! reach is decided by this node's own catalog alone. What is said on the wire is [`edgemesh_wire`].

mod acceptor;
mod address_discovery;
mod address_places;
mod arrivals;
mod carry;
mod chunk_run;
mod codes;
mod congestion;
mod counters;
mod course;
mod datagram_traffic;
mod endpoint_options;
mod exit;
mod exit_flow;
mod fault;
mod first_bytes;
mod flow_table;
mod hello_stream;
mod home_wanted;
mod identity;
mod inflow;
mod jobs;
mod key_text;
mod link;
mod message_stream;
mod movable;
mod open;
mod own_addresses;
mod own_record;
mod own_threads;
mod peer_address;
mod peer_book;
mod peer_status;
mod peer_stream;
mod presence;
mod raw_key_verifier;
mod read_ahead;
mod readings;
mod relay_access;
mod relay_address;
mod relay_book;
mod relay_certificate;
mod relay_counters;
mod relay_detours;
mod relay_dialer;
mod relay_door;
mod relay_request;
mod relay_rooms;
mod relay_server;
#[cfg(test)]
mod relay_stage;
mod relay_trust;
mod relays;
mod replay;
mod resumable;
mod resume;
mod running;
mod session;
mod settings;
mod stretches;
mod tcp_carrier;
mod tunnel;
mod udp_flow;
mod unread_pieces;
mod ways_named;
mod ways_to_dial;

pub use carry::{Broken, Way};
pub use counters::{Counters, DatagramDropped};
pub use endpoint_options::BindFault;
pub use fault::OpenFault;
pub use first_bytes::{FirstBytes, LentBytes};
pub use identity::{KeyError, NodeKey, Rotated, is_signed_by, is_successor};
pub use key_text::NotAKey;
pub use movable::{Movable, movable};
pub use open::TunnelStream;
pub use peer_book::{NotBelieved, Peer, PeerBook, Peers, RefusedPeer};
pub use peer_status::{LinkStatus, Path, PeerStatus};
pub use relay_address::{NotARelayAddress, RelayAddress};
pub use relay_book::RelayNode;
pub use relay_counters::RelayCounters;
pub use relay_server::{DISCOVERY_PORT, RELAY_PORT, RelaySettings};
pub use running::{Running, StartError};
pub use settings::{Limits, Settings, Timing};
pub use tunnel::{Target, Tunnel};
pub use udp_flow::{SendFault, UdpFlow};

//! The user-mode path: intercepted traffic comes in, endpoints get it.
//!
//! The kernel's rules translate every portal's destination to this node's *intercept
//! address*. There the [`Forwarder`] has
//!
//! * one TCP port per family, with a listener for each core, which learns from connection
//!   tracking where each connection was meant to go,
//! * one UDP socket per portal, whose answers leave from where they were asked,
//! * one *refusal port* per family, reserved and never served, for portals without
//!   endpoints and for strangers: the kernel refuses on our behalf.
//!
//! ```text
//! client ─ DNAT ─> listener ─> portal table ─> balancer ─> dial ─> relay ─> endpoint
//! client ─ DNAT ─> portal's UDP socket ─> flow per client ───────────────> endpoint
//! ```
//!
//! [`Forwarder::prepare`] follows the plan before the rules do, [`Forwarder::retire`] after.
//! Which endpoint is next is decided without I/O, clock or chance of its own; everything that
//! runs is owned by the forwarder and ends with it.

mod addrs;
mod affinity;
mod balance;
mod chance;
mod connection;
mod connection_end;
mod crew;
mod descriptors;
mod dial;
mod dial_reports;
mod endpoint_health;
mod error;
mod flow_cap;
mod forwarder;
mod gait;
mod left_out;
mod liveness;
mod log_limit;
mod metrics;
mod original_dst;
mod portal;
mod portal_table;
mod pump;
mod reasons;
mod recent_ports;
mod refusal;
mod relay;
mod settings;
mod socket;
mod tasks;
mod udp;
mod udp_answers;
mod udp_flow;
mod udp_portals;
mod udp_upstream;
mod ways;
mod worker;
mod worker_thread;

pub use addrs::{ClientAddr, ListenAddr, OriginalDst};
pub use dial_reports::{DialReports, NotReached};
pub use edgemesh_sockets::EndpointAddr;
pub use endpoint_health::EndpointHealth;
pub use error::BindError;
pub use forwarder::{Destinations, Drained, Forwarder, TaskEnded};
pub use left_out::LeftOut;
pub use liveness::Liveness;
pub use metrics::{Counters, Sample, SampleKind};
pub use original_dst::{ResolveOriginalDst, from_conntrack};
pub use reasons::{DialFault, Dropped, FlowEnded, Refused};
pub use settings::{Limits, Settings, Strategy, Wanted};

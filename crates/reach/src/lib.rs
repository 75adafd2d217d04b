//! Which peers are reached without the tunnel.
//!
//! ```text
//! catalog, peers ─> places ─> prober ─ asking ══ pod network ══ answering ─ answerer   (a peer's)
//!                               │  └ what each address has proved (track)
//! tunnel's peers, overrides ─> reachability ─> plan
//! ```
//!
//! That an address answers says nothing: sites use the same private ranges, and a stranger may
//! have the address that a pod has elsewhere. So a peer counts as *direct* only where its agent
//! answers a probe with the signature of its key, over the network that its endpoints are in,
//! several times in a row and again and again. Everything else goes through the tunnel.
//!
//! A proof tells that packets to that address come to the peer at this time. It does not make
//! the way private: who reaches peers natively has to trust the network between.
//!
//! Deciding ([`Timing`] tells when) is apart from sockets, clocks and chance; see
//! `edgemesh_wire::Probe` for the bytes.

mod allowance;
mod answerer;
mod answering;
mod asking;
mod counters;
mod equipment;
mod interfaces;
mod jitter;
mod overrides;
mod places;
mod prober;
mod report;
mod running;
mod settings;
mod timing;
mod track;

pub use answerer::Refused;
pub use counters::Counters;
pub use overrides::{OverrideRule, Selection};
pub use prober::NetworkChange;
pub use report::{AddressReach, Finding, PeerReach};
pub use running::{Reach, Running};
pub use settings::{Inputs, News, Probing, Settings};
pub use timing::Timing;

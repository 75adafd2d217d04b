//! What the cluster says, as one immutable value.
//!
//! A source (the Kubernetes API, a folder of manifests, the last good catalog
//! on disk) turns objects into the small types of this crate and feeds them to
//! a [`Fold`]; whoever decides reads a [`Catalog`], which never changes under
//! its reader. Only what a decision needs is kept: annotations, managed fields
//! and the like are dropped at the door.
//!
//! This crate does no I/O and knows neither tokio nor the Kubernetes API types;
//! its `Cargo.toml` keeps it so.

mod endpoint_slice;
mod fold;
mod mesh_node;
mod names;
mod node;
mod public_key;
mod service;
mod shared_map;
mod snapshot;

pub use endpoint_slice::{Endpoint, EndpointHints, EndpointPort, EndpointSlice, EndpointState};
pub use fold::{Change, Fold};
pub use mesh_node::{MeshNode, PreviousKey, ProbePlaces, RelayServer};
pub use names::{NodeName, ObjectName, ServicePortName};
pub use node::Node;
pub use public_key::{KeySignature, NotBase64, PublicKey};
pub use service::{
    FILTER_LABEL, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy, UnknownProtocol,
};
pub use shared_map::{Differing, SharedMap};
pub use snapshot::Catalog;

//! Sources of the catalog: the Kubernetes API, a directory of manifests, and the
//! last good catalog on disk.
//!
//! A source is a future for its owner to run and a channel of [`SourceState`]s to
//! read from. It reads objects as the API defines them, keeps what the catalog
//! needs, and publishes whole catalogs only: never one of which half is still to
//! come. Nothing that a cluster or a file can say is fatal to it; what is wrong
//! is said once and counted ([`Counters`]), and the usable rest is used.
//!
//! * [`ApiSource`] lists and watches Services, EndpointSlices (or Endpoints), Nodes and
//!   MeshNodes. Until its first lists are complete it serves the [`LastGood`] catalog
//!   if it is given one, which a [`LastGoodSaver`] keeps up to date on disk.
//! * [`ManifestsSource`] reads a directory of ordinary YAML and JSON manifests and
//!   follows its changes. It stands alone.
//!
//! This is the only room that knows Kubernetes objects. How an object is read
//! depends on that object alone, so that a watch, with whatever it went through,
//! ends with the same catalog as a fresh list.

mod api;
mod complaints;
mod counters;
mod last_good;
mod manifests;
mod objects;
mod own_mesh_node;
mod peer_events;
mod publisher;
mod source;
mod state;

pub use api::{
    ApiSettings, ApiSettingsError, ApiSource, ApiTiming, ApiWay, MetaServerSecurity, Reached, reach,
};
pub use counters::Counters;
pub use last_good::{LastGood, LastGoodError, LastGoodFile, LastGoodSaver};
pub use manifests::{ManifestError, ManifestsError, ManifestsSource};
pub use own_mesh_node::{Condition, MeshNodePublisher, OwnMeshNode, Publication, PublishTiming};
pub use peer_events::{PeerEvent, PeerEvents};
pub use source::Source;
pub use state::{Origin, Problems, SourceState};

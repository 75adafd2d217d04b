//! What the agent says of itself, kept where its peers look: its own MeshNode.

mod document;
mod file;
mod object;
mod publisher;
mod upkeep;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgemesh_catalog::MeshNode;

pub(crate) use document::timestamp;
pub use publisher::MeshNodePublisher;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMeshNode {
    /// What its peers need. [`MeshNode::uid`] is the server's and not looked at.
    pub node: MeshNode,
    /// How it fares, for people. At most 16 are published, and to the API only.
    pub conditions: Vec<Condition>,
}

/// A condition of the MeshNode's status, as Kubernetes defines them (`Condition` of
/// `k8s.io/apimachinery/pkg/apis/meta/v1/types.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `type`, in CamelCase; each occurs once. `Ready` has a column of its own in
    /// `kubectl get meshnodes`.
    pub kind: Arc<str>,
    /// True, false, or none for unknown.
    pub status: Option<bool>,
    /// Why, as one word in CamelCase.
    pub reason: Arc<str>,
    /// Why, for people.
    pub message: Arc<str>,
    /// Since when it has its status.
    pub since: SystemTime,
}

/// How it goes with publishing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// When it was last written (or found to be there as it should be); none before.
    pub written_at: Option<SystemTime>,
    /// Why it cannot be written now, and what to do; none while it can.
    pub trouble: Option<Arc<str>>,
    /// How often somebody else was found to have changed or removed it.
    pub overwritten: u64,
}

/// When the own MeshNode is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishTiming {
    /// Changes within this time of a write are written together; after the first three writes,
    /// within a twentieth of it. Default 1 s.
    pub interval: Duration,
    /// How often it is written though nothing changed, give or take a fifth, so that
    /// `spec.renewTime` tells who is alive. With the API only. Default 5 min, and so many
    /// times longer as the cluster has hundreds of nodes: every node is told of every
    /// renewal, and many are at the end of a narrow link.
    pub renewal: Duration,
    /// First pause after a failure; each further one is twice as long, with jitter.
    /// Default 1 s.
    pub retry_min: Duration,
    /// Longest pause after a failure. Default 60 s.
    pub retry_max: Duration,
    /// First pause before what somebody else changed is put back; each further one is twice
    /// as long, with jitter. Default 1 s.
    pub put_back_min: Duration,
    /// Longest pause before it is put back. Default 5 min.
    pub put_back_max: Duration,
    /// How long the catalog may show something else after a write. Default 10 s.
    pub settle: Duration,
}

impl Default for PublishTiming {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            renewal: Duration::from_secs(300),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            put_back_min: Duration::from_secs(1),
            put_back_max: Duration::from_secs(300),
            settle: Duration::from_secs(10),
        }
    }
}

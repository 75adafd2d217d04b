//! How long the API source waits for what.

use std::time::Duration;

/// Waiting times of the API source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTiming {
    /// How long the first lists may take before the last good catalog is served
    /// instead (it is at once when a request fails). Default 2 s.
    pub patience: Duration,
    /// Changes within this time of a publication are published together. Default 50 ms.
    pub coalesce: Duration,
    /// First pause after a failure; each further one is twice as long, with jitter.
    /// Default 300 ms.
    pub backoff_min: Duration,
    /// Longest pause after a failure. Default 20 s.
    pub backoff_max: Duration,
    /// An outage of this length makes the source read its settings anew and ask the
    /// server anew what it offers. Default 60 s.
    pub long_outage: Duration,
    /// How often to look for what the server did not offer (EndpointSlices, Nodes).
    /// Default 10 min; for Nodes with jitter, up to twice as long.
    pub look_again: Duration,
    /// The same for MeshNodes at first, for their CRD may come with the agent: 5 s. Each
    /// further pause is twice as long, with jitter.
    pub look_for_mesh_nodes_min: Duration,
    /// The longest pause between two looks for MeshNodes. Default 60 s.
    pub look_for_mesh_nodes_max: Duration,
}

impl Default for ApiTiming {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(2),
            coalesce: Duration::from_millis(50),
            backoff_min: Duration::from_millis(300),
            backoff_max: Duration::from_secs(20),
            long_outage: Duration::from_secs(60),
            look_again: Duration::from_secs(600),
            look_for_mesh_nodes_min: Duration::from_secs(5),
            look_for_mesh_nodes_max: Duration::from_secs(60),
        }
    }
}

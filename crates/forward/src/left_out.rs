//! An endpoint that is left out for a while.

use std::net::SocketAddr;
use std::time::Duration;

use edgemesh_catalog::ServicePortName;
use edgemesh_plan::Frontend;

/// An endpoint that failed and has not answered since: other endpoints of its portal are
/// tried before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The service port.
    pub name: ServicePortName,
    /// The portal; each has its own experience with an endpoint.
    pub frontend: Frontend,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Failures in a row.
    pub failures: u32,
    /// How long it is still left out; zero when the next connection tries it again, or one
    /// is trying it now.
    pub remaining: Duration,
}

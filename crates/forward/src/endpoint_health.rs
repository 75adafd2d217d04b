//! Which endpoints are left out for a while, told to whoever wants to show it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgemesh_catalog::ServicePortName;
use edgemesh_plan::Frontend;
use tokio::sync::watch;

use crate::portal_table::PortalTable;

/// What is known about the endpoints of all portals, at any time. Clones see the same.
#[derive(Clone, Debug)]
pub struct EndpointHealth {
    table: watch::Receiver<Arc<PortalTable>>,
}

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

impl EndpointHealth {
    pub(crate) fn new(table: watch::Receiver<Arc<PortalTable>>) -> Self {
        Self { table }
    }

    /// All endpoints that are left out at `now`, sorted by portal and address.
    #[must_use]
    pub fn left_out(&self, now: Instant) -> Vec<LeftOut> {
        let table = Arc::clone(&self.table.borrow());
        table
            .portals()
            .flat_map(|portal| portal.left_out(now))
            .collect()
    }

    /// Those of one portal.
    #[must_use]
    pub fn left_out_of(&self, frontend: &Frontend, now: Instant) -> Vec<LeftOut> {
        let table = Arc::clone(&self.table.borrow());
        table
            .get(frontend)
            .map(|portal| portal.left_out(now))
            .unwrap_or_default()
    }
}

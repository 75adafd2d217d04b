//! Which endpoints are left out for a while, told to whoever wants to show it.

use std::sync::Arc;
use std::time::Instant;

use edgemesh_plan::Frontend;
use tokio::sync::watch;

use crate::left_out::LeftOut;
use crate::portal_table::PortalTable;

/// What is known about the endpoints of all portals, at any time. Clones see the same.
#[derive(Clone, Debug)]
pub struct EndpointHealth {
    table: watch::Receiver<Arc<PortalTable>>,
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

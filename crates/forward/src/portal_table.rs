//! All portals that are served, as one immutable table.

use std::collections::BTreeSet;
use std::sync::Arc;

use edgemesh_catalog::{Protocol, SharedMap};
use edgemesh_plan::{Frontend, Plan, Target};

use crate::Strategy;
use crate::addrs::OriginalDst;
use crate::chance::Chance;
use crate::portal::ActivePortal;

/// Portals by their frontend. A table never changes; a new one shares the portals that stay,
/// so that what they know of their endpoints stays too.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortalTable {
    portals: SharedMap<Frontend, Arc<ActivePortal>>,
}

impl PortalTable {
    /// The portal that a TCP connection came for.
    pub(crate) fn tcp(&self, destination: OriginalDst) -> Option<&Arc<ActivePortal>> {
        self.portals.get(&Frontend {
            ip: destination.0.ip(),
            protocol: Protocol::Tcp,
            port: destination.0.port(),
        })
    }

    pub(crate) fn get(&self, frontend: &Frontend) -> Option<&Arc<ActivePortal>> {
        self.portals.get(frontend)
    }

    /// All portals, sorted by frontend.
    pub(crate) fn portals(&self) -> impl Iterator<Item = &Arc<ActivePortal>> {
        self.portals.values()
    }

    /// The table with what `plan` has at these frontends in it, and all that was in it before.
    pub(crate) fn with(
        &self,
        plan: &Plan,
        frontends: &BTreeSet<Frontend>,
        strategy: Strategy,
        chance: &Chance,
    ) -> Self {
        let mut portals = self.portals.clone();
        for (port, portal) in frontends.iter().filter_map(|at| plan.intercepted_at(*at)) {
            let Target::Forward {
                endpoints,
                datapath,
                ..
            } = &portal.target
            else {
                continue;
            };
            match portals.get(&portal.frontend) {
                Some(known) if known.name == port.name => {
                    known.update(endpoints, port.affinity, *datapath, chance.draw());
                }
                // Another Service has taken the address over: nothing carries over.
                Some(_) | None => {
                    let active = ActivePortal::new(
                        port.name.clone(),
                        portal.frontend,
                        strategy,
                        Arc::clone(endpoints),
                        port.affinity,
                        chance.draw(),
                    );
                    active.update(endpoints, port.affinity, *datapath, chance.draw());
                    portals.insert(portal.frontend, Arc::new(active));
                }
            }
        }
        Self { portals }
    }

    /// The table without the portals at these frontends.
    pub(crate) fn without(&self, frontends: &BTreeSet<Frontend>) -> Self {
        let mut portals = self.portals.clone();
        for frontend in frontends {
            portals.remove(frontend);
        }
        Self { portals }
    }
}

/// Whether the forwarder serves a portal there, by that plan.
pub(crate) fn is_served(plan: &Plan, frontend: Frontend) -> bool {
    let at = plan.intercepted_at(frontend);
    at.is_some_and(|(_, portal)| is_forwarded(&portal.target))
}

/// Whether the forwarder serves a portal with that target.
pub(crate) fn is_forwarded(target: &Target) -> bool {
    match target {
        Target::Forward { .. } => true,
        Target::Refuse(_) | Target::LeaveAlone(_) => false,
    }
}

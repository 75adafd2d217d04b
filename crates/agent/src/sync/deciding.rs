//! How the loop comes to a plan: from the catalog, and from what the host can do for it.

use std::sync::Arc;

use edgemesh_catalog::Catalog;
use edgemesh_plan::{HostFacts, Plan, plan, plan_since};
use edgemesh_rules::Family;

use super::Sync;
use crate::in_force::Planned;

impl Sync {
    /// Makes a plan, sets what the host lacks for it where that may be set, and has the
    /// forwarder ready for it.
    pub(super) fn decide(&mut self, catalog: Catalog) -> Planned {
        let mut policy = self.inputs.policy.borrow_and_update().clone();
        let reachability = self.inputs.reachability.borrow_and_update().clone();
        self.forwarding.look();
        policy.host = self.host_facts();
        let mut decided = match self.telling.last_planned() {
            Some(last) => plan_since(&catalog, &reachability, &policy, last.as_earlier()),
            None => plan(&catalog, &reachability, &policy),
        };
        if self.make_way(&decided) {
            policy.host = self.host_facts();
            decided = plan(&catalog, &reachability, &policy);
        }
        Planned {
            destinations: Arc::new(self.forwarder.prepare(&decided)),
            plan: Arc::new(decided),
            catalog,
            reachability,
            policy,
        }
    }

    /// Sets what keeps portals of `plan` in user mode; whether that changed anything.
    fn make_way(&mut self, plan: &Plan) -> bool {
        let obstacles = self.obstacles.of(plan);
        let made: Vec<bool> = obstacles
            .into_iter()
            .map(|(family, why)| self.forwarding.make_way(family, why))
            .collect();
        made.contains(&true)
    }

    /// What this host can do, by the last look, and by what its kernel took of the rules.
    fn host_facts(&self) -> HostFacts {
        let mut facts = self.forwarding.facts().clone();
        for backend in self.families.iter().map(|family| &family.backend) {
            let facts = match backend.family() {
                Family::V4 => &mut facts.ipv4,
                Family::V6 => &mut facts.ipv6,
            };
            facts.no_kernel_path = backend.no_kernel_path();
            facts.no_affinity = backend.no_affinity();
        }
        facts
    }

    /// Looks whether the host can do more or less than the last plan is made for.
    pub(super) fn host_changed(&mut self) -> bool {
        self.forwarding.look();
        self.telling.host_is_other_than(&self.host_facts())
    }
}

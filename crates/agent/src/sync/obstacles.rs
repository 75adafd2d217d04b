//! Why portals are in user mode. Pure.

use std::collections::BTreeMap;

use edgemesh_plan::{Datapath, Plan, ServicePortPlan, Target, UserMode};
use edgemesh_rules::Family;

/// The reasons of a plan, counted as plans follow each other.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    plan: Plan,
    portals: BTreeMap<(Family, UserMode), usize>,
}

impl Obstacles {
    /// Those of the plan that comes next, each once for each family.
    pub(super) fn of(&mut self, plan: &Plan) -> Vec<(Family, UserMode)> {
        for (before, now) in plan.ports_changed_since(&self.plan) {
            for reason in now.into_iter().flat_map(of_port) {
                *self.portals.entry(reason).or_default() += 1;
            }
            for reason in before.into_iter().flat_map(of_port) {
                if let Some(portals) = self.portals.get_mut(&reason) {
                    *portals -= 1;
                }
            }
        }
        self.portals.retain(|_, portals| *portals > 0);
        self.plan = plan.clone();
        self.portals.keys().copied().collect()
    }
}

fn of_port(port: &ServicePortPlan) -> impl Iterator<Item = (Family, UserMode)> {
    port.portals
        .iter()
        .filter_map(|portal| match &portal.target {
            Target::Forward {
                datapath: Datapath::User(why),
                ..
            } => Some((Family::of(portal.frontend.ip), *why)),
            Target::Forward { .. } | Target::Refuse(_) | Target::LeaveAlone(_) => None,
        })
}

//! What the kernel shall have, made from the plan and the forwarder's ports. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use edgemesh_forward::Destinations;
use edgemesh_plan::{Plan, Portal, ServicePortPlan, Target};
use edgemesh_rules::{Family, PortalRule, RuleComment, Ruleset};

/// Adds to `empty`, a ruleset without portals, a rule for each portal of its family.
///
/// A portal that the forwarder cannot serve gets none: it stays kube-proxy's until the
/// forwarder can. Comments are shared with the ruleset `before`.
pub(crate) fn ruleset(
    mut empty: Ruleset,
    plan: &Plan,
    destinations: &Destinations,
    before: Option<&Ruleset>,
) -> Ruleset {
    let known_comment = |frontend, name| {
        let known = &before?.portals().get(frontend)?.comment;
        known.is_name_of(name).then(|| known.clone())
    };
    for (port, portal) in served(plan, destinations, empty.family()) {
        let Some(&to_port) = destinations.ports.get(&portal.frontend) else {
            continue;
        };
        let rule = PortalRule {
            comment: known_comment(&portal.frontend, &port.name)
                .unwrap_or_else(|| RuleComment::from(&port.name)),
            to_port,
            kernel: None,
        };
        if let Err(misplaced) = empty.insert(portal.frontend, rule) {
            // The plan holds no such portal; saying so beats trusting that silently.
            tracing::error!(service_port = %port.name, %misplaced, "portal left out of the rules");
        }
    }
    empty
}

/// The addresses that host processes must have a route to.
pub(crate) fn addresses(ruleset: &Ruleset) -> BTreeSet<IpAddr> {
    ruleset
        .portals()
        .keys()
        .map(|frontend| frontend.ip)
        .collect()
}

fn served<'a>(
    plan: &'a Plan,
    destinations: &'a Destinations,
    family: Family,
) -> impl Iterator<Item = (&'a ServicePortPlan, &'a Portal)> {
    plan.intercepted()
        .filter(move |(_, portal)| Family::of(portal.frontend.ip) == family)
        .filter(|(_, portal)| !destinations.failed.contains_key(&portal.frontend))
        .map(|(port, portal)| (&**port, portal))
}

/// How many portals are handled in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handling {
    /// Forwarded by us.
    pub(crate) forwarded: usize,
    /// Refused by us, for want of endpoints.
    pub(crate) refused: usize,
    /// Left to kube-proxy (or to nobody) by decision.
    pub(crate) left_alone: usize,
    /// Left to kube-proxy because the forwarder cannot serve them now.
    pub(crate) failed: usize,
}

/// Counts what becomes of each portal; a service port without portals counts once.
pub(crate) fn handling(plan: &Plan, destinations: &Destinations) -> Handling {
    let mut handling = Handling::default();
    for port in plan.ports() {
        if port.left_alone.is_some() {
            handling.left_alone += 1;
        }
        for portal in &port.portals {
            *match &portal.target {
                _ if destinations.failed.contains_key(&portal.frontend) => &mut handling.failed,
                Target::Forward { .. } => &mut handling.forwarded,
                Target::Refuse(_) => &mut handling.refused,
                Target::LeaveAlone(_) => &mut handling.left_alone,
            } += 1;
        }
    }
    handling
}

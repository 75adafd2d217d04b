//! What the kernel shall have, made from the plan and the forwarder's ports. Pure.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use edgemesh_forward::Destinations;
use edgemesh_plan::{Datapath, Frontend, OwnPods, Plan, Portal, ServicePortPlan, Target};
use edgemesh_rules::{
    Family, KernelEndpoint, KernelPath, PortalRule, RuleComment, Ruleset, Sharing,
};

/// What rules are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basis<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) own_pods: OwnPods<'a>,
    pub(crate) destinations: &'a Destinations,
}

/// Rules that were made before, and what they were made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before<'a> {
    pub(crate) rules: &'a Ruleset,
    pub(crate) basis: Basis<'a>,
}

/// Adds to `empty`, a ruleset without portals, a rule for each portal of its family.
///
/// A portal that the forwarder cannot serve gets none: it stays kube-proxy's until the
/// forwarder can. What is the same in the ruleset `before` is shared with it and not looked at
/// again; what is not differs in as little as can be.
pub(crate) fn ruleset(empty: Ruleset, basis: Basis<'_>, before: Option<Before<'_>>) -> Ruleset {
    let family = empty.family();
    let of_family = |frontend: &Frontend| Family::of(frontend.ip) == family;
    let empty = empty.leaving_ports(basis.destinations.failed.keys().any(of_family));
    let (mut ruleset, anew) = begin(empty, basis, before);
    let known = before.map(|before| before.rules.portals());
    for frontend in anew.into_iter().filter(of_family) {
        let known = known.and_then(|portals| portals.get(&frontend));
        let Some(rule) = rule_at(frontend, basis, known) else {
            ruleset.remove(&frontend);
            continue;
        };
        if let Err(misplaced) = ruleset.insert(frontend, rule) {
            // The plan holds no such portal; saying so beats trusting that silently.
            tracing::error!(%frontend, %misplaced, "portal left out of the rules");
        }
    }
    ruleset
}

/// The rules to go on from, and the frontends whose rules have to be made.
fn begin(
    empty: Ruleset,
    basis: Basis<'_>,
    before: Option<Before<'_>>,
) -> (Ruleset, BTreeSet<Frontend>) {
    match before {
        Some(before) if before.basis.own_pods == basis.own_pods => {
            let planned = basis.plan.frontends_changed_since(before.basis.plan);
            let ports = &before.basis.destinations.ports;
            let served = ports.differing(&basis.destinations.ports);
            let anew = planned.chain(served.map(|(frontend, _, _)| *frontend));
            (empty.with_portals_of(before.rules), anew.collect())
        }
        Some(_) | None => {
            let all = basis.plan.intercepted();
            (empty, all.map(|(_, portal)| portal.frontend).collect())
        }
    }
}

/// The rule of a portal, if it is to have one.
fn rule_at(frontend: Frontend, basis: Basis<'_>, known: Option<&PortalRule>) -> Option<PortalRule> {
    let (port, portal) = basis.plan.intercepted_at(frontend)?;
    let to_port = *basis.destinations.ports.get(&frontend)?;
    let comment = known.map(|known| &known.comment);
    let path = known.and_then(|known| known.kernel.as_deref());
    Some(PortalRule {
        comment: comment
            .filter(|comment| comment.is_name_of(&port.name))
            .map_or_else(|| RuleComment::from(&port.name), RuleComment::clone),
        to_port,
        kernel: kernel_path(port, portal, basis.own_pods, path),
    })
}

/// How the kernel serves a portal, if it has a part in it.
fn kernel_path(
    port: &ServicePortPlan,
    portal: &Portal,
    own_pods: OwnPods<'_>,
    known: Option<&KernelPath>,
) -> Option<Box<KernelPath>> {
    let Target::Forward {
        endpoints,
        datapath,
        ..
    } = &portal.target
    else {
        return None;
    };
    let kernels = || {
        datapath
            .kernel_endpoints(endpoints)
            .map(|endpoint| KernelEndpoint {
                address: endpoint.address,
                is_pod_here: own_pods.has(endpoint),
            })
    };
    let sharing = match datapath {
        Datapath::User(_) => return None,
        Datapath::Kernel => port.affinity.map_or(Sharing::Alone, Sharing::Sticky),
        Datapath::KernelAndAgent => {
            let agents = endpoints.len() - kernels().count();
            u32::try_from(agents)
                .ok()
                .and_then(NonZeroU32::new)
                .map_or(Sharing::Alone, Sharing::WithAgent)
        }
    };
    let path = match known {
        Some(known)
            if known.sharing() == sharing && known.endpoints().iter().copied().eq(kernels()) =>
        {
            known.clone()
        }
        Some(known) => KernelPath::new(kernels(), sharing)?.following(known),
        None => KernelPath::new(kernels(), sharing)?,
    };
    Some(Box::new(path))
}

/// How many portals are handled in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handling {
    /// Sent to endpoints by the kernel.
    pub(crate) by_kernel: usize,
    /// Sent to endpoints by the kernel and the agent, to each his own.
    pub(crate) by_both: usize,
    /// Forwarded by the agent.
    pub(crate) by_agent: usize,
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
                Target::Forward { datapath, .. } => match datapath {
                    Datapath::Kernel => &mut handling.by_kernel,
                    Datapath::KernelAndAgent => &mut handling.by_both,
                    Datapath::User(_) => &mut handling.by_agent,
                },
                Target::Refuse(_) => &mut handling.refused,
                Target::LeaveAlone(_) => &mut handling.left_alone,
            } += 1;
        }
    }
    handling
}

#[cfg(test)]
#[path = "wanted_tests.rs"]
mod tests;

//! What the kernel shall have, made from the plan and the forwarder's ports. Pure.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::net::IpAddr;
use std::num::NonZeroU32;

use edgemesh_forward::Destinations;
use edgemesh_plan::{Datapath, Frontend, OwnPods, Plan, Portal, ServicePortPlan, Target, UserMode};
use edgemesh_rules::{
    Family, KernelEndpoint, KernelPath, PortalRule, RuleComment, Ruleset, Sharing,
};

/// Adds to `empty`, a ruleset without portals, a rule for each portal of its family.
///
/// A portal that the forwarder cannot serve gets none: it stays kube-proxy's until the
/// forwarder can. What is the same in the ruleset `before` is shared with it, and what is not
/// differs in as little as can be.
pub(crate) fn ruleset(
    empty: Ruleset,
    plan: &Plan,
    own_pods: OwnPods<'_>,
    destinations: &Destinations,
    before: Option<&Ruleset>,
) -> Ruleset {
    let family = empty.family();
    let mut failed = destinations.failed.keys();
    let mut ruleset = empty.leaving_ports(failed.any(|portal| Family::of(portal.ip) == family));
    let mut served: Vec<_> = served(plan, destinations, family).collect();
    // In the order of all the others, so that nothing is searched for.
    served.sort_unstable_by_key(|(_, portal)| portal.frontend);
    let mut ports = destinations.ports.iter().peekable();
    let mut known = before.into_iter().flat_map(Ruleset::portals).peekable();
    for (port, portal) in served {
        let Some(&to_port) = advance_to(&mut ports, &portal.frontend) else {
            continue;
        };
        let known = advance_to(&mut known, &portal.frontend);
        let known_comment = known.map(|known| &known.comment);
        let rule = PortalRule {
            comment: known_comment
                .filter(|comment| comment.is_name_of(&port.name))
                .map_or_else(|| RuleComment::from(&port.name), RuleComment::clone),
            to_port,
            kernel: kernel_path(
                port,
                portal,
                own_pods,
                known.and_then(|k| k.kernel.as_deref()),
            ),
        };
        if let Err(misplaced) = ruleset.insert(portal.frontend, rule) {
            // The plan holds no such portal; saying so beats trusting that silently.
            tracing::error!(service_port = %port.name, %misplaced, "portal left out of the rules");
        }
    }
    ruleset
}

/// What a sorted list has for `frontend`, which comes after all that was asked for before.
fn advance_to<'a, V>(
    sorted: &mut Peekable<impl Iterator<Item = (&'a Frontend, &'a V)>>,
    frontend: &Frontend,
) -> Option<&'a V> {
    while sorted.next_if(|(next, _)| *next < frontend).is_some() {}
    let (_, value) = sorted.next_if(|(next, _)| *next == frontend)?;
    Some(value)
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

/// Why portals are in user mode, each reason once for each family.
pub(crate) fn obstacles(plan: &Plan) -> BTreeSet<(Family, UserMode)> {
    plan.intercepted()
        .filter_map(|(_, portal)| match &portal.target {
            Target::Forward {
                datapath: Datapath::User(why),
                ..
            } => Some((Family::of(portal.frontend.ip), *why)),
            Target::Forward { .. } | Target::Refuse(_) | Target::LeaveAlone(_) => None,
        })
        .collect()
}

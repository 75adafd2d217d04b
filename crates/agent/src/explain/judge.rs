//! Who will handle a new connection to a portal, by what the kernel holds. Pure.

use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Family, Flavour, Hook, KubeAction, KubeRule, NatView, NftElement, OwnChain, PortalFound,
    SentTo, StandingRule,
};

use super::answer::Decision;
use super::datapath::TakenBy;
use super::kernel::Kernel;
use super::own_table::{by_own_table, lets_pass, refused};
use super::verdict::{Agent, Handler, RuleShown, Sends, Verdict};

/// What one flavour's nat table has for a portal, in one hook.
struct Seen<'a> {
    flavour: Flavour,
    family: Family,
    hook: &'a Hook,
    own: Option<&'a PortalFound>,
    /// The rule of the hook's own chain by which connections come to `own`.
    led_by: Option<&'a StandingRule>,
    sent: Vec<SentTo>,
    gates: &'a [StandingRule],
    kube: Option<&'a KubeRule>,
}

/// Who handles a new connection to `frontend` that comes by the hook of `chain`.
pub(crate) fn verdict(
    chain: OwnChain,
    frontend: &Frontend,
    kernel: &Kernel,
    agent: Agent,
) -> Verdict {
    let family = Family::of(frontend.ip);
    let seen: Vec<Seen<'_>> = kernel
        .nats
        .iter()
        .filter(|inspected| inspected.family == family)
        .filter_map(|inspected| Some((inspected.flavour, inspected.nat.as_ref().ok()?)))
        .map(|(flavour, view)| see(flavour, family, view, chain, frontend))
        .collect();
    let mut verdict = by_own_table(chain, frontend, kernel, agent)
        .or_else(|| seen.iter().find_map(|seen| ours(seen, agent)))
        .or_else(|| seen.iter().find_map(kube_proxys))
        .or_else(|| kube_proxys_table(frontend, kernel))
        .or_else(|| ipvs(frontend, kernel))
        .or_else(|| refused(chain, frontend, kernel, agent))
        .unwrap_or_else(Verdict::of_nobody);
    verdict.from = match chain {
        OwnChain::Container => "pods",
        OwnChain::Host => "host",
    }
    .to_owned();
    verdict.notes.extend(oddities(&seen, &verdict, agent));
    verdict.notes.extend(lets_pass(frontend, kernel, agent));
    verdict.notes.extend(earlier(chain, family, kernel));
    verdict
}

fn see<'a>(
    flavour: Flavour,
    family: Family,
    view: &'a NatView,
    chain: OwnChain,
    frontend: &Frontend,
) -> Seen<'a> {
    let own = view.own_rule(chain, frontend);
    Seen {
        flavour,
        family,
        hook: view.hook(chain),
        own,
        led_by: own.map(|found| view.led_by(chain, found)),
        sent: own.map(|found| view.sent_to(found)).unwrap_or_default(),
        gates: view.other_own_rules(chain),
        kube: view.kube_rule(frontend),
    }
}

/// Our rule decides if a jump leads to it before kube-proxy has taken the connection.
fn ours(seen: &Seen<'_>, agent: Agent) -> Option<Verdict> {
    let (found, jump) = (seen.own?, seen.hook.own_jump.as_ref()?);
    if overtaken(seen) || (agent == Agent::Silent && passes_gate(seen)) {
        return None;
    }
    let kube = match &seen.hook.kube_jump {
        Some(kube) => format!("KUBE-SERVICES rule {}", kube.place),
        None => "no KUBE-SERVICES".to_owned(),
    };
    let mut verdict = Verdict::by(
        Handler::Edgemesh,
        agent.outcome(found.refused, taken_by(&seen.sent)),
        format!(
            "{}: ours is rule {}, {kube}",
            seen.hook_name(jump),
            jump.place
        ),
        Some(RuleShown {
            of_both: seen.led_by.is_some_and(|entry| *entry != found.rule),
            ..shown(seen, &found.rule, "nat")
        }),
    );
    if seen.sent.len() > 1 {
        verdict.sends = seen.sent.iter().map(sends).collect();
    }
    Some(verdict)
}

/// Who takes connections that the kernel sends to these.
fn taken_by(sent: &[SentTo]) -> TakenBy {
    let to_agent = sent.iter().filter(|sent| sent.is_agent).count();
    match sent.len() - to_agent {
        0 => TakenBy::Agent,
        _ if to_agent == 0 => TakenBy::Kernel,
        _ => TakenBy::KernelAndAgent,
    }
}

fn sends(sent: &SentTo) -> Sends {
    Sends {
        to: sent.address.to_string(),
        is_agent: sent.is_agent,
        connections: Some(sent.connections),
    }
}

/// Whether kube-proxy's jump stands before ours and takes the connection.
fn overtaken(seen: &Seen<'_>) -> bool {
    match (&seen.hook.own_jump, &seen.hook.kube_jump, seen.kube) {
        (Some(own), Some(kube), Some(rule)) => {
            kube.place < own.place && rule.action == KubeAction::Serves
        }
        _ => false,
    }
}

/// Whether a rule stands before ours that lets connections pass while no agent lives.
fn passes_gate(seen: &Seen<'_>) -> bool {
    let gates = || seen.gates.iter();
    seen.led_by
        .is_some_and(|rule| gates().any(|gate| gate.place < rule.place))
}

fn kube_proxys(seen: &Seen<'_>) -> Option<Verdict> {
    let (rule, jump) = (seen.kube?, seen.hook.kube_jump.as_ref()?);
    let (outcome, table) = match rule.action {
        KubeAction::Serves => ("sent to an endpoint by kube-proxy's rules", "nat"),
        KubeAction::Refuses => ("refused by kube-proxy for want of endpoints", "filter"),
    };
    Some(Verdict::by(
        Handler::KubeProxy,
        outcome,
        match &seen.hook.own_jump {
            Some(own) => format!(
                "{}: KUBE-SERVICES is rule {}, ours rule {}",
                seen.hook_name(jump),
                jump.place,
                own.place
            ),
            None => format!(
                "{}: KUBE-SERVICES is rule {}, none of ours",
                seen.hook_name(jump),
                jump.place
            ),
        },
        Some(shown(seen, &rule.rule, table)),
    ))
}

fn kube_proxys_table(frontend: &Frontend, kernel: &Kernel) -> Option<Verdict> {
    let element = kernel.nft.get(frontend)?;
    let (outcome, text) = match element {
        NftElement::Serves(text) => ("sent to an endpoint by kube-proxy's rules", text),
        NftElement::Refuses(text) => ("refused by kube-proxy for want of endpoints", text),
    };
    let mut verdict = Verdict::by(
        Handler::KubeProxy,
        outcome,
        "nf_tables: table kube-proxy (kube-proxy's nftables mode)".to_owned(),
        None,
    );
    verdict.notes.push(format!("its map says: {text}"));
    Some(verdict)
}

fn ipvs(frontend: &Frontend, kernel: &Kernel) -> Option<Verdict> {
    kernel.ipvs.contains(frontend).then(|| {
        Verdict::by(
            Handler::KubeProxy,
            "sent to an endpoint by IPVS",
            "a virtual service of IPVS (kube-proxy's ipvs mode)".to_owned(),
            None,
        )
    })
}

fn shown(seen: &Seen<'_>, rule: &StandingRule, table: &str) -> RuleShown {
    RuleShown {
        command: format!(
            "{}-{} -t {table} -nvL {} {}",
            seen.family.tool(),
            seen.flavour,
            rule.chain,
            rule.place
        ),
        chain: rule.chain.clone(),
        map: None,
        place: rule.place,
        text: rule.text.clone(),
        packets: rule.packets,
        of_both: false,
    }
}

/// What does not fit together.
fn oddities(seen: &[Seen<'_>], verdict: &Verdict, agent: Agent) -> Vec<String> {
    let mut notes = Vec::new();
    for one in seen.iter().filter(|one| one.own.is_some()) {
        if one.hook.own_jump.is_none() {
            notes.push(
                "a rule of the agent is there, but no jump leads to its chain; a running agent \
                 repairs that within moments"
                    .to_owned(),
            );
        } else if overtaken(one) {
            notes.push(
                "the agent's jump stands behind KUBE-SERVICES; a running agent repairs that \
                 within moments"
                    .to_owned(),
            );
        }
    }
    match (agent, verdict.handler) {
        (Agent::Silent, Handler::Edgemesh) => notes.push(
            "start the agent again, or run `edgemesh-agent cleanup` to leave it to kube-proxy"
                .to_owned(),
        ),
        (Agent::Runs(Some(Decision::Forward | Decision::Refuse)), Handler::Nobody) => notes.push(
            "the agent means to handle it, but its rule is missing; `edgemesh-agent status` and \
             the log say why"
                .to_owned(),
        ),
        (Agent::Runs(Some(Decision::LeaveAlone)), Handler::Edgemesh) => notes.push(
            "the agent means to leave it alone, but a rule of its own is still there".to_owned(),
        ),
        _ => {}
    }
    let both = seen
        .iter()
        .filter(|one| one.hook.own_jump.is_some() || one.hook.kube_jump.is_some());
    if both.count() > 1 {
        notes.push(
            "both flavours of iptables have rules for Services; they don't see each other, and \
             which is asked first depends on which was loaded first"
                .to_owned(),
        );
    }
    notes
}

/// NAT chains of others that are asked before all of iptables: the first NAT wins.
fn earlier(chain: OwnChain, family: Family, kernel: &Kernel) -> Option<String> {
    let names = kernel.earlier_nat(chain, family);
    (!names.is_empty()).then(|| {
        format!(
            "asked before all this, and first to decide if it does NAT: {}",
            names.join(", ")
        )
    })
}

impl Seen<'_> {
    fn hook_name(&self, jump: &StandingRule) -> String {
        format!("{}-{} {}", self.family.tool(), self.flavour, jump.chain)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

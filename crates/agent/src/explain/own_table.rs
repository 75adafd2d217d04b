//! What the agent's own nf_tables tables do with a new connection. Pure.

use std::net::SocketAddr;

use edgemesh_plan::Frontend;
use edgemesh_rules::{ElementFound, Family, OwnChain, TableFound};

use super::datapath::TakenBy;
use super::kernel::{KUBE_PROXY_TABLE, Kernel, NAT_PRIORITY};
use super::verdict::{Agent, Handler, RuleShown, Sends, Verdict};

/// The agent's own table stands before all of iptables, and before kube-proxy's, by its
/// priority. It takes a connection if it has an element for it and its gate is open.
pub(super) fn by_own_table(
    chain: OwnChain,
    frontend: &Frontend,
    kernel: &Kernel,
    agent: Agent,
) -> Option<Verdict> {
    let (table, element, standing) = holding(frontend, kernel)
        .filter(|(table, _)| table.open_for.is_some())
        .find_map(|(table, element)| Some((table, element, table.chains.get(&chain)?)))?;
    let shared = element.shared.as_ref();
    let map = table.map_of(element);
    let rule = RuleShown {
        chain: standing.name.clone(),
        place: shared.and(standing.shared_place).unwrap_or(standing.place),
        command: format!(
            "nft get element {map} '{{ {} . {} . {} }}'",
            frontend.ip, frontend.protocol, frontend.port
        ),
        map: Some(map),
        text: shared.map_or(&element.text, |shared| &shared.text).clone(),
        packets: shared.map_or(element.packets, |shared| shared.packets),
        of_both: true,
    };
    let mut verdict = Verdict::by(
        Handler::Edgemesh,
        agent.outcome(element.refused, taken_by(element)),
        format!(
            "nft table {} {}, chain {}: hook {} at priority {}, {}",
            table.family.nft_name(),
            table.name,
            standing.name,
            chain.hook().to_lowercase(),
            standing.priority,
            behind(chain, table.family, kernel)
        ),
        Some(rule),
    );
    verdict.sends = sends(element);
    Some(verdict)
}

fn taken_by(element: &ElementFound) -> TakenBy {
    match (
        element.kernel_endpoints().is_empty(),
        element.has_agents_part(),
    ) {
        (true, _) => TakenBy::Agent,
        (false, true) => TakenBy::KernelAndAgent,
        (false, false) => TakenBy::Kernel,
    }
}

/// To whom the kernel sends connections, where there are several; it counts the agent's.
fn sends(element: &ElementFound) -> Vec<Sends> {
    let Some(shared) = &element.shared else {
        return Vec::new();
    };
    let to_endpoint = |endpoint: &SocketAddr| Sends {
        to: endpoint.to_string(),
        is_agent: false,
        connections: None,
    };
    let mut sends: Vec<_> = shared.endpoints.iter().map(to_endpoint).collect();
    if element.has_agents_part() {
        sends.push(Sends {
            to: element.to.to_string(),
            is_agent: true,
            connections: Some(element.packets),
        });
    }
    sends
}

/// What nobody takes is refused, where there is no kube-proxy: by a table that outlives the
/// agent and is asked behind all NAT.
pub(super) fn refused(
    chain: OwnChain,
    frontend: &Frontend,
    kernel: &Kernel,
    agent: Agent,
) -> Option<Verdict> {
    let name = kernel.refused.get(frontend)?;
    let hook = match chain {
        OwnChain::Container => "forward",
        OwnChain::Host => "output",
    };
    let mut verdict = Verdict::by(
        Handler::Nobody,
        "refused at once: nobody serves it",
        format!(
            "nft set {} edgemesh-refuse portals ({name}), asked in the hook {hook}, behind all NAT",
            Family::of(frontend.ip).nft_name()
        ),
        None,
    );
    let halted = holding(frontend, kernel).next().is_some();
    // Of a table whose gate is closed it is said anyway what to do.
    if agent == Agent::Silent && !halted {
        verdict
            .notes
            .push("start the agent again, or run `edgemesh-agent cleanup`".to_owned());
    }
    Some(verdict)
}

/// That a table of the agent's would take the connection, were its gate open.
pub(super) fn lets_pass(frontend: &Frontend, kernel: &Kernel, agent: Agent) -> Option<String> {
    let (table, _) = holding(frontend, kernel).find(|(table, _)| table.open_for.is_none())?;
    let what_to_do = match agent {
        Agent::Runs(_) => {
            "a running agent opens it within moments; `edgemesh-agent status` and the log say \
             what keeps it from doing so"
        }
        Agent::Silent => {
            "the agent hangs or is gone; start it again, or run `edgemesh-agent cleanup`"
        }
    };
    Some(format!(
        "the agent's table {} {} has an element for it, but lets everything pass for want of a \
         sign of life: {what_to_do}",
        table.family.nft_name(),
        table.name
    ))
}

/// The agent's own tables that have an element for the portal, in the order in which the
/// kernel asks them.
fn holding<'a>(
    frontend: &'a Frontend,
    kernel: &'a Kernel,
) -> impl Iterator<Item = (&'a TableFound, &'a ElementFound)> {
    let family = Family::of(frontend.ip);
    kernel
        .tables
        .iter()
        .filter(move |table| table.family == family)
        .filter_map(|table| Some((table, table.portals.get(frontend)?)))
}

/// What of kube-proxy's is asked after the agent's own table.
fn behind(chain: OwnChain, family: Family, kernel: &Kernel) -> String {
    let hook = chain.hook().to_lowercase();
    let tables = kernel.chains.iter().filter(|(of, base)| {
        *of == family && base.kind == "nat" && base.hook == hook && base.table == KUBE_PROXY_TABLE
    });
    let mut behind: Vec<String> = tables
        .map(|(_, base)| {
            format!(
                "table {} chain {} at {}",
                base.table, base.name, base.priority
            )
        })
        .collect();
    let nats = kernel
        .nats
        .iter()
        .filter(|inspected| inspected.family == family);
    behind.extend(nats.filter_map(|inspected| {
        let nat = inspected.nat.as_ref().ok()?;
        let jump = nat.hook(chain).kube_jump.as_ref()?;
        Some(format!(
            "KUBE-SERVICES ({}-{} {} rule {}) at {NAT_PRIORITY}",
            family.tool(),
            inspected.flavour,
            jump.chain,
            jump.place
        ))
    }));
    if behind.is_empty() {
        "no kube-proxy behind it".to_owned()
    } else {
        format!("before {}", behind.join(" and "))
    }
}

#[cfg(test)]
#[path = "own_table_tests.rs"]
mod tests;

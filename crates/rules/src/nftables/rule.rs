//! The rules of our chains, each as nft writes it and as the kernel takes it.

use std::borrow::Cow;

use edgemesh_catalog::Protocol;

use super::expression::{Expressions, Verdict};
use super::sign_of_life::{ALIVE_FOR, PORT};
use super::table_name::{ALIVE, ALIVE_ID, PORTALS, PORTALS_ID};
use crate::{Family, OwnChain, Ruleset};

/// The comment of the rules that refuse what is addressed to a listener itself.
pub(super) const NOT_THROUGH_PORTAL: &str = "edgemesh: not through a portal";

/// The comment of the rule that asks the map of the portals.
pub(super) const THROUGH_PORTAL: &str = "edgemesh: ClusterIPs";

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// As nft writes it, without its comment.
    pub(super) text: String,
    pub(super) expressions: Expressions,
    pub(super) comment: Cow<'static, str>,
}

/// The rules of a chain, in their order. They are the same for any number of portals.
pub(super) fn rules_of(chain: OwnChain, rules: &Ruleset, kernel_path: bool) -> Vec<Rule> {
    let mut all = Vec::new();
    match chain {
        OwnChain::Container => {}
        OwnChain::Host => all.push(sign_of_life(rules)),
    }
    all.push(gate());
    all.push(own_traffic(rules));
    all.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| not_through_portal(rules, protocol)));
    if kernel_path {
        all.push(Rule::shared(rules.family()));
    }
    all.push(portals(rules.family()));
    if chain == OwnChain::Host && !rules.leaves_ports() {
        all.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| no_port(rules, protocol)));
    }
    all
}

/// What the agent sends itself to show that it lives; see [`super::sign_of_life`].
fn sign_of_life(rules: &Ruleset) -> Rule {
    let (family, mark) = (rules.family(), rules.mark());
    Rule {
        text: format!(
            "meta mark & {mark} == {mark} {} daddr {} udp dport {PORT} \
             update @{ALIVE} {{ ct direction timeout {}s }} drop",
            family.nft_name(),
            family.loopback(),
            ALIVE_FOR.as_secs(),
        ),
        expressions: Expressions::default()
            .with_mark(mark)
            .for_address(family.loopback())
            .of_protocol(Protocol::Udp)
            .for_port(PORT)
            .renew_in(ALIVE, ALIVE_ID, ALIVE_FOR.as_secs() * 1000)
            .verdict(Verdict::Drop),
        comment: "edgemesh: a sign of life".into(),
    }
}

/// Everything passes unless the agent lives.
pub(super) fn gate() -> Rule {
    Rule {
        text: format!("ct direction != @{ALIVE} return"),
        expressions: Expressions::default()
            .unless_in(ALIVE, ALIVE_ID)
            .verdict(Verdict::Return),
        comment: "edgemesh: only while the agent lives".into(),
    }
}

/// What the agent sends itself passes unchanged.
pub(super) fn own_traffic(rules: &Ruleset) -> Rule {
    let mark = rules.mark();
    Rule {
        text: format!("meta mark & {mark} == {mark} return"),
        expressions: Expressions::default()
            .with_mark(mark)
            .verdict(Verdict::Return),
        comment: "edgemesh: the agent's own traffic".into(),
    }
}

/// Whoever addresses a listener of ours itself, not through a portal, is refused.
fn not_through_portal(rules: &Ruleset, protocol: Protocol) -> Rule {
    let refused_at = rules.refused_at();
    Rule {
        text: format!(
            "{} daddr {} meta l4proto {protocol} dnat to {refused_at}",
            rules.family().nft_name(),
            rules.intercept(),
        ),
        expressions: Expressions::default()
            .for_address(rules.intercept())
            .of_protocol(protocol)
            .send_to(refused_at),
        comment: NOT_THROUGH_PORTAL.into(),
    }
}

/// A process of the host that only a last-resort route leads to a portal's address, and that
/// asks for a port which is none, is refused: the packet would go round `lo` otherwise. Only
/// those routes have that source.
fn no_port(rules: &Ruleset, protocol: Protocol) -> Rule {
    let refused_at = rules.refused_at();
    Rule {
        text: format!(
            "{} saddr {} meta l4proto {protocol} dnat to {refused_at}",
            rules.family().nft_name(),
            rules.intercept(),
        ),
        expressions: Expressions::default()
            .sent_by(rules.intercept())
            .of_protocol(protocol)
            .send_to(refused_at),
        comment: "edgemesh: no port of that ClusterIP".into(),
    }
}

/// All portals.
fn portals(family: Family) -> Rule {
    let name = family.nft_name();
    Rule {
        text: format!("dnat {name} to {name} daddr . meta l4proto . th dport map @{PORTALS}"),
        expressions: Expressions::default().send_by(family, PORTALS, PORTALS_ID),
        comment: THROUGH_PORTAL.into(),
    }
}

//! A ruleset as the rules that the two chains hold, in their order.

use crate::Ruleset;
use crate::chain_names::OwnChain;
use crate::iptables::own_rule::{fixed_rules, portal_rules, write_line};

/// The rules of both chains as iptables-save prints them once they are in force.
///
/// Pure; sorted by frontend. Meant for people and for golden tests: what is sent to the
/// kernel is the difference to what it holds.
#[must_use]
pub fn render(rules: &Ruleset) -> String {
    let mut text = String::new();
    for chain in OwnChain::BOTH {
        for rule in fixed_rules(rules).into_iter().chain(portal_rules(rules)) {
            write_line(&mut text, "-A", chain.name(), &rule);
        }
    }
    text
}

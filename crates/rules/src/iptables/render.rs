//! A ruleset as the rules that our chains hold, in their order.

use crate::Ruleset;
use crate::chain_names::MASQUERADE;
use crate::iptables::chain_content::portal_chains;
use crate::iptables::masquerade::masquerade_rules;
use crate::iptables::own_rule::write_line;
use crate::iptables::service_chain::{chain_name, endpoint_rules};

/// The rules of our chains as iptables-save prints them once they are in force.
///
/// Pure; sorted by frontend. Meant for people and for golden tests: what is sent to the
/// kernel is the difference to what it holds.
#[must_use]
pub fn render(rules: &Ruleset) -> String {
    let mut text = String::new();
    for content in portal_chains(rules) {
        let chain = content.chain.to_string();
        for rule in content.rules() {
            write_line(&mut text, "-A", &chain, &rule);
        }
    }
    for (frontend, portal) in rules.portals() {
        for rule in endpoint_rules(rules, frontend, portal) {
            let chain = chain_name(frontend, portal.comment.as_str());
            write_line(&mut text, "-A", &chain, &rule);
        }
    }
    if rules.extensions().kernel_path {
        for rule in masquerade_rules(rules) {
            write_line(&mut text, "-A", MASQUERADE, &rule);
        }
    }
    text
}

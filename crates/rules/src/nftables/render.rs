//! A ruleset as the table that nft lists.

use std::fmt::Write;

use super::element::PortalElement;
use super::heartbeat::ALIVE_FOR;
use super::rule::rules_of;
use super::table_name::{ALIVE, PORTALS, TableName, chain_name};
use super::transaction::{TABLE_COMMENT, chain_declaration, portal_type_text};
use crate::{OwnChain, Ruleset};

/// The table of a ruleset, in a form that `nft -f` reads; without the owner flag, for that
/// would make it vanish when nft ends.
///
/// Pure; sorted by frontend. Meant for people and for golden tests: the agent tells the
/// kernel by netlink, and only what differs from what is there.
#[must_use]
pub fn render_nftables(rules: &Ruleset) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_table(&mut text, rules);
    text
}

fn write_table(text: &mut String, rules: &Ruleset) -> std::fmt::Result {
    let [table, _] = TableName::all(rules.family());
    writeln!(text, "table {table} {{\n\tcomment \"{TABLE_COMMENT}\"")?;
    writeln!(
        text,
        "\tset {ALIVE} {{\n\t\ttype ct_dir\n\t\tsize 16\n\t\tflags dynamic,timeout\n\
         \t\telements = {{ original timeout {}s }}\n\t}}\n",
        ALIVE_FOR.as_secs()
    )?;
    writeln!(
        text,
        "\tmap {PORTALS} {{\n\t\ttype {}\n\t\tcounter",
        portal_type_text(rules.family())
    )?;
    let elements: Vec<String> = rules
        .portals()
        .iter()
        .map(|(frontend, rule)| PortalElement::of(rules, frontend, rule).text())
        .collect();
    if !elements.is_empty() {
        writeln!(
            text,
            "\t\telements = {{ {} }}",
            elements.join(",\n\t\t\t     ")
        )?;
    }
    text.push_str("\t}\n");
    for chain in OwnChain::BOTH {
        writeln!(
            text,
            "\n\tchain {} {{\n\t\t{}",
            chain_name(chain),
            chain_declaration(chain)
        )?;
        for rule in rules_of(chain, rules) {
            writeln!(text, "\t\t{} comment \"{}\"", rule.text, rule.comment)?;
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    Ok(())
}

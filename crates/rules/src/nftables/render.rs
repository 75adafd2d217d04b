//! A ruleset as the table that nft lists.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use super::change::{Change, everything};
use super::fixed_chain::HookPlace;
use super::own_table_parts::{TABLE_COMMENT, clients_declaration, fixed_sets, own_chains};
use super::rule::Rule;
use super::sign_of_life::ALIVE_FOR;
use super::table_name::{ALIVE, TableName};
use crate::{Family, Ruleset};

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

fn write_table(text: &mut String, rules: &Ruleset) -> fmt::Result {
    let family = rules.family();
    let [table, _] = TableName::all(family);
    let contents = Contents::of(rules);
    writeln!(text, "table {table} {{\n\tcomment \"{TABLE_COMMENT}\"")?;
    writeln!(
        text,
        "\tset {ALIVE} {{\n\t\ttype ct_dir\n\t\tsize 16\n\t\tflags dynamic,timeout\n\
         \t\telements = {{ original timeout {}s }}\n\t}}",
        ALIVE_FOR.as_secs()
    )?;
    for set in fixed_sets(family, true) {
        writeln!(text, "\n\t{} {} {{\n\t\t{}", set.kind(), set.name, set.text)?;
        if set.counts {
            text.push_str("\t\tcounter\n");
        }
        if let Some(elements) = contents.elements.get(set.name) {
            let elements = elements.join(",\n\t\t\t     ");
            writeln!(text, "\t\telements = {{ {elements} }}")?;
        }
        text.push_str("\t}\n");
    }
    for (name, silence) in &contents.sets {
        write_clients(text, family, name, *silence)?;
    }
    for (name, rules) in &contents.chains {
        write_chain(text, name, None, rules)?;
    }
    for chain in own_chains(rules, true) {
        let place = chain.place.map(HookPlace::text);
        write_chain(text, chain.name, place, &chain.rules)?;
    }
    text.push_str("}\n");
    Ok(())
}

/// What there is because of the portals.
#[derive(Debug, Default)]
struct Contents {
    elements: BTreeMap<&'static str, Vec<String>>,
    sets: Vec<(String, Duration)>,
    chains: Vec<(String, Vec<Rule>)>,
}

impl Contents {
    fn of(rules: &Ruleset) -> Self {
        let mut contents = Self::default();
        for change in everything(rules).all() {
            match change {
                Change::AddSet(name, silence) => contents.sets.push((name.clone(), *silence)),
                Change::AddChain(name) => contents.chains.push((name.clone(), Vec::new())),
                Change::AddRule(to, rule) => {
                    let chain = contents.chains.iter_mut().find(|(name, _)| name == to);
                    if let Some((_, rules)) = chain {
                        rules.push(rule.clone());
                    }
                }
                Change::Add(element) => {
                    let elements = contents.elements.entry(element.key.set()).or_default();
                    elements.push(element.text());
                }
                // Nothing was there before.
                Change::EmptyChain(_)
                | Change::Delete(_)
                | Change::DeleteChain(_)
                | Change::DeleteSet(_) => {}
            }
        }
        contents
    }
}

fn write_clients(text: &mut String, family: Family, name: &str, silence: Duration) -> fmt::Result {
    writeln!(text, "\n\tset {name} {{")?;
    for line in clients_declaration(family, silence) {
        writeln!(text, "\t\t{line}")?;
    }
    text.push_str("\t}\n");
    Ok(())
}

pub(super) fn write_chain(
    text: &mut String,
    name: &str,
    place: Option<String>,
    rules: &[Rule],
) -> fmt::Result {
    writeln!(text, "\n\tchain {name} {{")?;
    if let Some(place) = place {
        writeln!(text, "\t\t{place}")?;
    }
    for rule in rules {
        writeln!(text, "\t\t{} comment \"{}\"", rule.text, rule.comment)?;
    }
    text.push_str("\t}\n");
    Ok(())
}

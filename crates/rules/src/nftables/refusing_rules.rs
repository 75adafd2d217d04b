//! What is in the table that refuses, each as nft writes it and as the kernel takes it.
//!
//! Its chains stand in the filter hooks, behind all NAT: a packet that still goes to a portal
//! was taken by nobody. Only what begins a connection is refused. A packet that belongs to
//! one may lack its NAT as well, when connection tracking finds it invalid, and a reset in
//! answer to that would end a connection that does well.

use std::fmt::Write;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::change::ELEMENTS_PER_MESSAGE;
use super::element::{key_attributes, key_text};
use super::expression::Expressions;
use super::fixed_chain::{FixedChain, HookPlace, going_on};
use super::fixed_sets::{DataType, address_name};
use super::refused_element::RefusedElement;
use super::render::write_chain;
use super::rule::{Rule, own_traffic};
use super::table_name::{PORTALS, PORTALS_ID, TableName};
use super::transaction::Transaction;
use super::wire::{
    Attributes, CREATE, DELETE_ELEMENT, EXCLUSIVE, NEW_ELEMENT, NEW_SET, NEW_TABLE, comment,
};
use crate::{Family, OwnChain, Ruleset};

/// Behind all NAT (-100, `NF_IP_PRI_NAT_DST`), before the filters of others (0,
/// `NF_IP_PRI_FILTER`): what they drop without a word would be left hanging.
const PRIORITY: i32 = -10;

/// Says on the table itself what it is.
const TABLE_COMMENT: &str = "ClusterIPs that nobody serves while edgemesh-agent doesn't";

/// The chains: those whose hooks packets of pods and of the host come by, and the one by which
/// connections go on that the agent had the kernel send to endpoints.
fn chains(rules: &Ruleset) -> Vec<FixedChain> {
    let mut chains: Vec<_> = OwnChain::BOTH
        .into_iter()
        .map(|chain| FixedChain {
            name: chain_name(chain),
            place: Some(hook(chain)),
            rules: rules_of(rules).into(),
        })
        .collect();
    chains.push(going_on());
    chains
}

/// The names of the chains.
pub(super) fn chain_names(rules: &Ruleset) -> Vec<&'static str> {
    chains(rules).into_iter().map(|chain| chain.name).collect()
}

const fn chain_name(chain: OwnChain) -> &'static str {
    match chain {
        OwnChain::Container => "refuse-container",
        OwnChain::Host => "refuse-host",
    }
}

fn hook(chain: OwnChain) -> HookPlace {
    let (hook, name) = match chain {
        OwnChain::Container => (2, "forward"),
        OwnChain::Host => (3, "output"),
    };
    HookPlace {
        kind: "filter",
        hook,
        name,
        priority: PRIORITY,
    }
}

/// Portals to take out of the set, and portals to put in after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SetChanges {
    pub(super) delete: Vec<Frontend>,
    pub(super) add: Vec<RefusedElement>,
}

impl SetChanges {
    /// All portals, into an empty set.
    pub(super) fn everything(wanted: &Ruleset) -> Self {
        Self {
            delete: Vec::new(),
            add: elements(wanted).collect(),
        }
    }

    /// What turns one ruleset's portals into another's.
    pub(super) fn between(held: &Ruleset, wanted: &Ruleset) -> Self {
        let mut changes = Self::default();
        for (frontend, before, after) in held.portals().differing(wanted.portals()) {
            if before.map(|rule| &rule.comment) == after.map(|rule| &rule.comment) {
                continue;
            }
            if before.is_some() {
                changes.delete.push(*frontend);
            }
            changes
                .add
                .extend(after.map(|rule| RefusedElement::of(frontend, rule)));
        }
        changes
    }

    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The same in several steps, one after the other, of at most so many elements each.
    pub(super) fn steps(&self, most: usize) -> impl Iterator<Item = SetChanges> + use<'_> {
        let delete = self.delete.chunks(most).map(|some| SetChanges {
            delete: some.to_vec(),
            add: Vec::new(),
        });
        let add = self.add.chunks(most).map(|some| SetChanges {
            delete: Vec::new(),
            add: some.to_vec(),
        });
        delete.chain(add)
    }
}

fn elements(rules: &Ruleset) -> impl Iterator<Item = RefusedElement> {
    let portals = rules.portals().iter();
    portals.map(|(frontend, rule)| RefusedElement::of(frontend, rule))
}

/// The rules of either chain.
fn rules_of(rules: &Ruleset) -> [Rule; 3] {
    let family = rules.family();
    [
        own_traffic(rules),
        refusal(family, Protocol::Tcp),
        refusal(family, Protocol::Udp),
    ]
}

fn refusal(family: Family, protocol: Protocol) -> Rule {
    let answer = match (protocol, family) {
        (Protocol::Tcp, _) => "tcp reset",
        (Protocol::Udp | Protocol::Sctp, Family::V4) => "icmp port-unreachable",
        (Protocol::Udp | Protocol::Sctp, Family::V6) => "icmpv6 port-unreachable",
    };
    Rule {
        text: format!(
            "ct state new meta l4proto {protocol} {} daddr . meta l4proto . th dport @{PORTALS} \
             reject with {answer}",
            family.nft_name()
        ),
        expressions: Expressions::default()
            .of_new_connection()
            .of_protocol(protocol)
            .for_any_of(family, PORTALS, PORTALS_ID)
            .refuse(family, protocol),
        comment: "edgemesh: nobody serves it".into(),
    }
}

impl Transaction {
    /// The table that refuses, with its set; its chains come
    /// [later](Self::make_refusing_chains).
    pub(super) fn make_refusing_table(&mut self) {
        let attributes = Attributes::default()
            .text(1, self.table.name)
            .number(2, 0)
            .bytes(6, &comment(TABLE_COMMENT));
        let command = format!(
            "add table {} {{ comment \"{TABLE_COMMENT}\"; }}",
            self.table
        );
        self.push(NEW_TABLE, CREATE | EXCLUSIVE, &attributes, command);
        let attributes = DataType::portal(self.table.family)
            .put_as_key(self.set(PORTALS).number(3, 0))
            .number(10, PORTALS_ID);
        let command = format!(
            "add set {} {PORTALS} {{ type {}; }}",
            self.table,
            key_type_text(self.table.family)
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
    }

    /// The chains with their rules: from here on packets are refused.
    pub(super) fn make_refusing_chains(&mut self, rules: &Ruleset) {
        for chain in chains(rules) {
            self.make_chain(&chain);
        }
    }

    /// Takes portals out of the set and puts portals in.
    pub(super) fn change_refused(&mut self, changes: &SetChanges) {
        for some in changes.delete.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = self.elements(PORTALS, some.iter().map(key_attributes));
            let text = some.iter().map(key_text).collect::<Vec<_>>().join(", ");
            let command = format!("delete element {} {PORTALS} {{ {text} }}", self.table);
            self.push(DELETE_ELEMENT, 0, &attributes, command);
        }
        for some in changes.add.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = self.elements(PORTALS, some.iter().map(RefusedElement::attributes));
            let text: Vec<_> = some.iter().map(RefusedElement::text).collect();
            let command = format!(
                "add element {} {PORTALS} {{ {} }}",
                self.table,
                text.join(", ")
            );
            self.push(NEW_ELEMENT, CREATE | EXCLUSIVE, &attributes, command);
        }
    }
}

fn key_type_text(family: Family) -> String {
    format!("{} . inet_proto . inet_service", address_name(family))
}

/// The table that refuses the portals of a ruleset where nobody else serves them, in a form
/// that `nft -f` reads. Pure; sorted by frontend. Meant for people and for tests.
#[must_use]
pub fn render_refusing(rules: &Ruleset) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_table(&mut text, rules);
    text
}

fn write_table(text: &mut String, rules: &Ruleset) -> std::fmt::Result {
    let table = TableName::refusing(rules.family());
    let key = key_type_text(rules.family());
    writeln!(text, "table {table} {{\n\tcomment \"{TABLE_COMMENT}\"")?;
    writeln!(text, "\tset {PORTALS} {{\n\t\ttype {key}")?;
    let elements: Vec<String> = elements(rules).map(|element| element.text()).collect();
    if !elements.is_empty() {
        writeln!(
            text,
            "\t\telements = {{ {} }}",
            elements.join(",\n\t\t\t     ")
        )?;
    }
    text.push_str("\t}\n");
    for chain in chains(rules) {
        let place = chain.place.map(HookPlace::text);
        write_chain(text, chain.name, place, &chain.rules)?;
    }
    text.push_str("}\n");
    Ok(())
}

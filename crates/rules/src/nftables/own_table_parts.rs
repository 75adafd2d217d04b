//! What is in our own table, as messages to the kernel.

use std::time::Duration;

use super::change::{Change, ELEMENTS_PER_MESSAGE};
use super::element::{Element, Key};
use super::fixed_chain::{FixedChain, HookPlace, NAT, POSTROUTING};
use super::fixed_sets::{DataType, FixedSet, address_name};
use super::kernel_rules::{leaving, masquerading};
use super::nftables_error::SHOWN_BYTES;
use super::rule::rules_of;
use super::sign_of_life::ALIVE_FOR;
use super::table_name::{
    ALIVE, ALIVE_ID, LEAVING, LEAVING_PRIORITY, MASQUERADING, PORTALS, PORTALS_ID, PRIORITY,
    chain_name, hook_name, hook_number,
};
use super::transaction::Transaction;
use super::wire::{
    Attributes, CREATE, DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, EXCLUSIVE,
    NEW_CHAIN, NEW_ELEMENT, NEW_SET, NEW_TABLE, comment,
};
use crate::{Family, OwnChain, Ruleset};

/// Says on the table itself what it is.
pub(super) const TABLE_COMMENT: &str = "ClusterIPs handled by edgemesh-agent";

impl Transaction {
    /// The table with all that is in it but the portals, the gate closed; its chains come
    /// [later](Self::make_chains).
    pub(super) fn make_table(&mut self, owned: bool, kernel_path: bool) {
        self.make_empty_table(owned);
        self.make_alive();
        for set in fixed_sets(self.table.family, kernel_path) {
            self.make_set(&set);
        }
    }

    /// The table without anything in it.
    pub(super) fn make_empty_table(&mut self, owned: bool) {
        const OWNED: u32 = 2;
        let (flag, text) = if owned {
            (OWNED, "flags owner; ")
        } else {
            (0, "")
        };
        let attributes = Attributes::default()
            .text(1, self.table.name)
            .number(2, flag)
            .bytes(6, &comment(TABLE_COMMENT));
        let command = format!(
            "add table {} {{ {text}comment \"{TABLE_COMMENT}\"; }}",
            self.table
        );
        self.push(NEW_TABLE, CREATE | EXCLUSIVE, &attributes, command);
    }

    fn make_set(&mut self, set: &FixedSet) {
        let id = match set.name {
            PORTALS => PORTALS_ID,
            _ => self.free_set_id(),
        };
        let attributes = set.put_into(self.set(set.name)).number(10, id);
        let command = format!(
            "add {} {} {} {{ {}; {}}}",
            set.kind(),
            self.table,
            set.name,
            set.text,
            if set.counts { "counter; " } else { "" }
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
    }

    fn make_alive(&mut self) {
        const TIMED_AND_DYNAMIC: u32 = 0x30;
        /// One is needed; what has just expired still counts for a while.
        const SIZE: u32 = 16;
        /// nft's number of the type `ct_dir`.
        const DIRECTION: u32 = 27;
        let attributes = self
            .set(ALIVE)
            .number(3, TIMED_AND_DYNAMIC)
            .number(4, DIRECTION)
            .number(5, 1)
            .nested(9, &Attributes::default().number(1, SIZE))
            .number(10, ALIVE_ID);
        let command = format!(
            "add set {} {ALIVE} {{ type ct_dir; size {SIZE}; flags dynamic,timeout; }}",
            self.table
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
    }

    /// Opens the gate, or begins its time anew.
    pub(super) fn renew_gate(&mut self) {
        let flush = self.set(ALIVE);
        let command = format!("flush set {} {ALIVE}", self.table);
        self.push(DELETE_ELEMENT, 0, &flush, command);
        self.open_gate();
    }

    /// Opens the gate that is closed.
    pub(super) fn open_gate(&mut self) {
        const KEY: u16 = 1;
        const TIMEOUT: u16 = 4;
        let seconds = ALIVE_FOR.as_secs();
        let element = Attributes::default()
            .value(KEY, &[0])
            .long(TIMEOUT, seconds * 1000);
        let attributes = self.elements(ALIVE, [element]);
        let command = format!(
            "add element {} {ALIVE} {{ original timeout {seconds}s }}",
            self.table
        );
        self.push(NEW_ELEMENT, CREATE, &attributes, command);
    }

    /// The chains with their rules: from here on traffic is handled.
    pub(super) fn make_chains(&mut self, rules: &Ruleset, kernel_path: bool) {
        for chain in own_chains(rules, kernel_path) {
            self.make_chain(&chain);
        }
    }

    /// Changes what depends on the portals.
    pub(super) fn change(&mut self, changes: &[Change]) {
        let (mut add, mut delete) = (Vec::new(), Vec::new());
        for change in changes {
            let in_another = |key: &Key, waiting: Option<&Key>| {
                waiting.is_some_and(|waiting| waiting.set() != key.set())
            };
            match change {
                Change::Add(element) => {
                    self.delete_elements(&mut delete);
                    let last = add.last().map(|element: &&Element| &element.key);
                    if in_another(&element.key, last) || add.len() == ELEMENTS_PER_MESSAGE {
                        self.add_elements(&mut add);
                    }
                    add.push(element);
                }
                Change::Delete(key) => {
                    self.add_elements(&mut add);
                    if in_another(key, delete.last()) || delete.len() == ELEMENTS_PER_MESSAGE {
                        self.delete_elements(&mut delete);
                    }
                    delete.push(*key);
                }
                other => {
                    self.delete_elements(&mut delete);
                    self.add_elements(&mut add);
                    self.change_object(other);
                }
            }
        }
        self.delete_elements(&mut delete);
        self.add_elements(&mut add);
    }

    fn delete_elements(&mut self, keys: &mut Vec<Key>) {
        let Some(first) = keys.first() else {
            return;
        };
        let set = first.set();
        let attributes = self.elements(set, keys.iter().map(|key| key.attributes()));
        let text = listed(keys.iter().map(|key| key.text()));
        let command = format!("delete element {} {set} {{ {text} }}", self.table);
        self.push_many(DELETE_ELEMENT, 0, &attributes, command, keys.len());
        keys.clear();
    }

    fn add_elements(&mut self, elements: &mut Vec<&Element>) {
        let Some(first) = elements.first() else {
            return;
        };
        let set = first.key.set();
        let attributes = self.elements(set, elements.iter().map(|element| element.attributes()));
        let text = listed(elements.iter().map(|element| element.text()));
        let command = format!("add element {} {set} {{ {text} }}", self.table);
        let flags = CREATE | EXCLUSIVE;
        self.push_many(NEW_ELEMENT, flags, &attributes, command, elements.len());
        elements.clear();
    }

    fn change_object(&mut self, change: &Change) {
        let named = |kind, name| {
            Attributes::default()
                .text(1, self.table.name)
                .text(kind, name)
        };
        let table = self.table;
        match change {
            Change::AddSet(name, silence) => self.make_clients(name, *silence),
            Change::AddChain(name) => {
                let command = format!("add chain {table} {name}");
                self.push(NEW_CHAIN, CREATE | EXCLUSIVE, &named(3, name), command);
            }
            Change::EmptyChain(name) => {
                let command = format!("flush chain {table} {name}");
                self.push(DELETE_RULE, 0, &named(2, name), command);
            }
            Change::AddRule(chain, rule) => self.append_rule(chain, rule),
            Change::DeleteChain(name) => {
                let command = format!("delete chain {table} {name}");
                self.push(DELETE_CHAIN, 0, &named(3, name), command);
            }
            Change::DeleteSet(name) => {
                let command = format!("delete set {table} {name}");
                self.push(DELETE_SET, 0, &named(2, name), command);
            }
            // They are gathered.
            Change::Add(_) | Change::Delete(_) => {}
        }
    }

    /// The clients of an endpoint. Without a size the kernel takes 65535 at most, and
    /// begins with little memory.
    fn make_clients(&mut self, name: &str, silence: Duration) {
        const TIMED_AND_DYNAMIC: u32 = 0x30;
        let milliseconds = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
        let attributes = self.set(name).number(3, TIMED_AND_DYNAMIC);
        let attributes = DataType::address(self.table.family)
            .put_as_key(attributes)
            .number(10, self.free_set_id())
            .long(11, milliseconds);
        let command = format!(
            "add set {} {name} {{ {} }}",
            self.table,
            clients_declaration(self.table.family, silence).join("; ")
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
    }
}

/// What a set of clients is, as nft writes it.
pub(super) fn clients_declaration(family: Family, silence: Duration) -> [String; 4] {
    [
        format!("type {}", address_name(family)),
        "size 65535".to_owned(),
        "flags dynamic,timeout".to_owned(),
        format!("timeout {}s", silence.as_secs()),
    ]
}

/// The maps and sets that the table has besides that of the signs of life.
pub(super) fn fixed_sets(family: Family, kernel_path: bool) -> Vec<FixedSet> {
    let mut sets = vec![FixedSet::portals(family)];
    if kernel_path {
        sets.extend(FixedSet::of_kernel_path(family));
    }
    sets
}

/// The chains, each before those that send packets into it.
pub(super) fn own_chains(rules: &Ruleset, kernel_path: bool) -> Vec<FixedChain> {
    let mut chains = if kernel_path {
        chains_of_kernel_path(rules)
    } else {
        Vec::new()
    };
    chains.extend(OwnChain::BOTH.into_iter().map(|chain| FixedChain {
        name: chain_name(chain),
        place: Some(HookPlace {
            kind: NAT,
            hook: hook_number(chain),
            name: hook_name(chain),
            priority: PRIORITY,
        }),
        rules: rules_of(chain, rules, kernel_path),
    }));
    chains
}

fn chains_of_kernel_path(rules: &Ruleset) -> Vec<FixedChain> {
    let leaving_place = HookPlace {
        kind: NAT,
        hook: POSTROUTING,
        name: "postrouting",
        priority: LEAVING_PRIORITY,
    };
    vec![
        FixedChain {
            name: MASQUERADING,
            place: None,
            rules: masquerading(rules),
        },
        FixedChain {
            name: LEAVING,
            place: Some(leaving_place),
            rules: leaving(rules),
        },
    ]
}

/// As much of the elements as an error shows.
fn listed(texts: impl Iterator<Item = String>) -> String {
    let mut list = String::new();
    for text in texts {
        if list.len() > SHOWN_BYTES {
            break;
        }
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(&text);
    }
    list
}

//! A nat table for tests, in which iptables-restore can be tried without a kernel.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::iptables::difference::{Means, against};
use crate::iptables::parse::Table;
use crate::iptables::transaction::Transaction;
use crate::{Repair, Ruleset};

/// A nat table that understands what iptables-restore --noflush does.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Simulated {
    pub(super) chains: BTreeMap<String, Vec<String>>,
}

impl Simulated {
    pub(super) fn new() -> Self {
        let mut table = Self::default();
        for hook in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
            table.chain(hook);
        }
        table
    }

    pub(super) fn chain(&mut self, name: &str) -> &mut Vec<String> {
        self.chains.entry(name.to_owned()).or_default()
    }

    pub(super) fn restore(&mut self, input: &str) {
        for line in input.lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, spec) = rest.split_once(' ').unwrap_or((rest, ""));
            match verb {
                "*nat" | "COMMIT" => {}
                "-A" => {
                    if let Some((_, target)) = spec.split_once("-j EDGEMESH-") {
                        self.existing(&format!("EDGEMESH-{target}"));
                    }
                    self.existing(chain).push(spec.to_owned());
                }
                "-D" => {
                    let rules = self.existing(chain);
                    let place = rules.iter().position(|rule| rule == spec);
                    rules.remove(place.unwrap_or_else(|| panic!("no such rule: {line}")));
                }
                "-I" => {
                    let (place, spec) = spec.split_once(' ').unwrap();
                    let place: usize = place.parse().unwrap();
                    self.existing(chain).insert(place - 1, spec.to_owned());
                }
                "-X" => {
                    assert!(self.chains.remove(chain).unwrap().is_empty(), "{line}");
                    let jump = format!("-j {chain}");
                    assert!(!self.chains.values().flatten().any(|r| r.ends_with(&jump)));
                }
                created => {
                    self.chains.insert(created[1..].to_owned(), Vec::new());
                }
            }
        }
    }

    fn existing(&mut self, chain: &str) -> &mut Vec<String> {
        self.chains
            .get_mut(chain)
            .unwrap_or_else(|| panic!("no chain {chain}"))
    }

    pub(super) fn save(&self) -> String {
        let mut text = "*nat\n".to_owned();
        for chain in self.chains.keys() {
            writeln!(text, ":{chain} - [0:0]").unwrap();
        }
        for (chain, rules) in &self.chains {
            for rule in rules {
                writeln!(text, "-A {chain} {rule}").unwrap();
            }
        }
        text + "COMMIT\n"
    }

    /// All that is not ours, in its order.
    pub(super) fn foreign(&self) -> Vec<String> {
        self.save()
            .lines()
            .filter(|line| !line.contains("EDGEMESH-"))
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn difference(&self, wanted: &Ruleset) -> (Transaction, Vec<Repair>) {
        let text = self.save();
        let difference = against(&Table::parse(&text), wanted, Means::SmallestChange);
        (difference.transaction, difference.repairs)
    }

    pub(super) fn holding(wanted: &Ruleset) -> Self {
        let mut table = Self::new();
        table.restore(&table.difference(wanted).0.text());
        table
    }
}

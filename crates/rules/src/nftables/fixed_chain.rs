//! The chains that a table of ours always has.

use super::rule::Rule;
use super::transaction::Transaction;
use super::wire::{Attributes, CREATE, EXCLUSIVE, NEW_CHAIN};

/// A kind of chain.
pub(super) const NAT: &str = "nat";

/// `NF_INET_POST_ROUTING`.
pub(super) const POSTROUTING: u32 = 4;

/// A chain.
#[derive(Clone, Debug)]
pub(super) struct FixedChain {
    pub(super) name: &'static str,
    /// Where packets come into it; none when other chains send them there.
    pub(super) place: Option<HookPlace>,
    pub(super) rules: Vec<Rule>,
}

/// Where a chain is hooked in.
#[derive(Clone, Copy, Debug)]
pub(super) struct HookPlace {
    /// `nat` or `filter`.
    pub(super) kind: &'static str,
    /// `NF_INET_*`, and what nft calls it.
    pub(super) hook: u32,
    pub(super) name: &'static str,
    pub(super) priority: i32,
}

impl HookPlace {
    /// As nft writes it.
    pub(super) fn text(self) -> String {
        let Self {
            kind,
            name,
            priority,
            ..
        } = self;
        format!("type {kind} hook {name} priority {priority}; policy accept;")
    }
}

/// A chain without rules, by which connections go on that were sent elsewhere.
///
/// The kernel goes through the addresses of such connections only as long as there is any nat
/// chain at all, whosever. Where there is no kube-proxy, ours would be the last one, and what it
/// decided once would end with it.
pub(super) fn going_on() -> FixedChain {
    FixedChain {
        name: "connections-go-on",
        place: Some(HookPlace {
            kind: NAT,
            hook: POSTROUTING,
            name: "postrouting",
            // Behind all that decide; any place would do.
            priority: 110,
        }),
        rules: Vec::new(),
    }
}

impl Transaction {
    pub(super) fn make_chain(&mut self, chain: &FixedChain) {
        let mut attributes = Attributes::default()
            .text(1, self.table.name)
            .text(3, chain.name);
        let mut command = format!("add chain {} {}", self.table, chain.name);
        if let Some(place) = chain.place {
            let hook = Attributes::default()
                .number(1, place.hook)
                .number(2, place.priority.cast_unsigned());
            attributes = attributes.nested(4, &hook).number(5, 1).text(7, place.kind);
            command += &format!(" {{ {} }}", place.text());
        }
        self.push(NEW_CHAIN, CREATE | EXCLUSIVE, &attributes, command);
        for rule in &chain.rules {
            self.append_rule(chain.name, rule);
        }
    }
}

//! The input of one iptables-restore.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::Ruleset;
use crate::chain_names::{JUMP_COMMENT, MASQUERADE, MASQUERADE_COMMENT, OwnChain, POSTROUTING};
use crate::iptables::masquerade::masquerade_rules;
use crate::iptables::own_rule::{OwnRule, fixed_rules, portal_rules, write_line};

/// Rules per step, once the kernel refused a message for its length. In a user namespace
/// iptables-nft can't enlarge its socket's buffer, and some 270 rules fit into the
/// default one (`net.core.wmem_default`, 208 KiB).
pub(crate) const RULES_PER_STEP: usize = 200;

/// Changes of the nat table, taken over by the kernel all or none.
///
/// It is one atomic step unless it is [split](Self::sections), and even then a chain is
/// filled before anything leads to it, and traffic reaches new chains only by the jumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// Chains made anew, each with all its rules behind it.
    whole_chains: BTreeMap<Backwards, String>,
    chains: String,
    rules: String,
    jumps: String,
    /// Chains that nothing leads to any more.
    emptied: String,
    deleted: String,
    lines: usize,
}

impl Transaction {
    pub(crate) fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// How many lines it changes, not counting what frames them.
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    /// Makes a chain anew whose rules shall never be seen without each other.
    pub(crate) fn make_whole<R: fmt::Display>(&mut self, chain: &str, rules: &[R]) {
        let mut text = String::new();
        write_new_chain(&mut text, chain);
        for rule in rules {
            write_line(&mut text, "-A", chain, rule);
        }
        self.whole_chains.insert(Reverse(chain.to_owned()), text);
        self.lines += 1 + rules.len();
    }

    /// Makes the chain if it is missing, and empties it.
    pub(crate) fn make_empty(&mut self, chain: OwnChain) {
        write_new_chain(&mut self.chains, chain.name());
        self.lines += 1;
    }

    pub(crate) fn append(&mut self, chain: OwnChain, rule: &OwnRule<'_>) {
        write_line(&mut self.rules, "-A", chain.name(), rule);
        self.lines += 1;
    }

    /// Inserts a rule at a place (from 1).
    pub(crate) fn insert(&mut self, chain: &str, place: usize, rule: &dyn fmt::Display) {
        write_line(&mut self.rules, "-I", &format!("{chain} {place}"), rule);
        self.lines += 1;
    }

    /// Deletes the first rule of this text.
    pub(crate) fn delete(&mut self, chain: &str, spec: &dyn fmt::Display) {
        write_line(&mut self.rules, "-D", chain, spec);
        self.lines += 1;
    }

    /// Makes the chain anew, with all rules of `wanted`.
    pub(crate) fn rewrite(&mut self, chain: OwnChain, wanted: &Ruleset) {
        self.make_empty(chain);
        for rule in fixed_rules(wanted, chain)
            .into_iter()
            .chain(portal_rules(wanted))
        {
            self.append(chain, &rule);
        }
    }

    /// Makes the chain anew that masquerades.
    pub(crate) fn rewrite_masquerade(&mut self, wanted: &Ruleset) {
        self.make_whole(MASQUERADE, &masquerade_rules(wanted));
    }

    /// Inserts our jump to `chain` at a place (from 1) of its hook.
    pub(crate) fn insert_jump(&mut self, chain: OwnChain, place: usize) {
        self.add_jump(chain.hook(), place, JUMP_COMMENT, chain.name());
    }

    /// Inserts the jump to the chain that masquerades, first of all: where others accept
    /// or masquerade a packet, the chain is over.
    pub(crate) fn insert_masquerade_jump(&mut self) {
        self.add_jump(POSTROUTING, 1, MASQUERADE_COMMENT, MASQUERADE);
    }

    /// Deletes the jump to the chain that masquerades, as it was inserted.
    pub(crate) fn delete_masquerade_jump(&mut self) {
        let jump = format!("-m comment --comment \"{MASQUERADE_COMMENT}\" -j {MASQUERADE}");
        self.delete_jump(POSTROUTING, &jump);
    }

    fn add_jump(&mut self, hook: &str, place: usize, comment: &str, to: &str) {
        let _ = writeln!(
            self.jumps,
            "-I {hook} {place} -m comment --comment \"{comment}\" -j {to}"
        );
        self.lines += 1;
    }

    /// Deletes the first rule of this text from a hook.
    pub(crate) fn delete_jump(&mut self, hook: &str, spec: &str) {
        write_line(&mut self.jumps, "-D", hook, &spec);
        self.lines += 1;
    }

    /// Empties a chain that nothing of ours leads to any more.
    pub(crate) fn empty(&mut self, chain: &str) {
        write_new_chain(&mut self.emptied, chain);
        self.lines += 1;
    }

    /// Deletes the chain, which must not be jumped to by then.
    pub(crate) fn delete_chain(&mut self, chain: &str) {
        self.empty(chain);
        let _ = writeln!(self.deleted, "-X {chain}");
        self.lines += 1;
    }

    /// Adds all of another one.
    pub(crate) fn append_all(&mut self, other: &Self) {
        self.whole_chains.extend(other.whole_chains.clone());
        self.chains += &other.chains;
        self.rules += &other.rules;
        self.jumps += &other.jumps;
        self.emptied += &other.emptied;
        self.deleted += &other.deleted;
        self.lines += other.lines;
    }

    /// The whole as one atomic step.
    pub(crate) fn text(&self) -> String {
        let parts = self.parts();
        let bytes: usize = parts.iter().map(|part| part.text.len()).sum();
        let mut text = String::with_capacity(bytes + 16);
        section(&mut text, parts.iter().map(|part| part.text.as_ref()));
        text
    }

    /// The same as several steps of about `most` rules each, one after the other, for a
    /// kernel that doesn't take the whole in one message; and how many steps.
    ///
    /// The jumps come together, and so do a chain's rules where they must.
    pub(crate) fn sections(&self, most: usize) -> (String, usize) {
        let mut text = String::new();
        let mut count = 0;
        for part in self.parts() {
            for step in part.steps(most) {
                section(&mut text, [step]);
                count += 1;
            }
        }
        (text, count)
    }

    /// In the order in which they must come.
    fn parts(&self) -> [Part<'_>; 6] {
        let parted = |text, parting| Part {
            text: Cow::Borrowed(text),
            parting,
        };
        [
            Part {
                text: self.whole_chains.values().map(String::as_str).collect(),
                parting: Parting::BeforeChains,
            },
            parted(self.chains.as_str(), Parting::Anywhere),
            parted(&self.rules, Parting::Anywhere),
            parted(&self.jumps, Parting::Nowhere),
            parted(&self.emptied, Parting::Anywhere),
            parted(&self.deleted, Parting::Anywhere),
        ]
    }
}

/// The names of chains, the last one first: iptables-nft keeps chains sorted and looks for the
/// place of a new one from the front, so that 10,000 take a third of the time this way.
type Backwards = Reverse<String>;

struct Part<'a> {
    text: Cow<'a, str>,
    parting: Parting,
}

/// Where a part may be taken apart.
#[derive(Clone, Copy)]
enum Parting {
    Anywhere,
    BeforeChains,
    Nowhere,
}

impl Part<'_> {
    /// Pieces of `most` lines, or some more where they can't be taken apart.
    fn steps(&self, most: usize) -> impl Iterator<Item = &str> {
        let mut rest = self.text.as_ref();
        std::iter::from_fn(move || {
            let mut end = 0;
            for (count, line) in rest.split_inclusive('\n').enumerate() {
                if count >= most.max(1) && self.parting.may_be_before(line) {
                    break;
                }
                end += line.len();
            }
            let (step, left) = rest.split_at(end);
            rest = left;
            (!step.is_empty()).then_some(step)
        })
    }
}

impl Parting {
    fn may_be_before(self, line: &str) -> bool {
        match self {
            Parting::Anywhere => true,
            Parting::BeforeChains => line.starts_with(':'),
            Parting::Nowhere => false,
        }
    }
}

fn write_new_chain(out: &mut String, chain: &str) {
    let _ = writeln!(out, ":{chain} - [0:0]");
}

fn section<'a>(text: &mut String, parts: impl IntoIterator<Item = &'a str>) {
    text.push_str("*nat\n");
    for part in parts {
        text.push_str(part);
    }
    text.push_str("COMMIT\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;

    #[test]
    fn a_split_transaction_keeps_its_order_and_ends_with_the_jumps() {
        let wanted = Ruleset::new("169.254.96.16".parse().unwrap(), 20008, Mark::AGENT);
        let mut whole = Transaction::default();
        whole.rewrite(OwnChain::Host, &wanted);
        whole.insert_jump(OwnChain::Host, 1);
        let (text, count) = whole.sections(2);
        assert_eq!(count, 4);
        let lines = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|line| !matches!(*line, "*nat" | "COMMIT"))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(lines(&text), lines(&whole.text()));
        assert_eq!(lines(&text).len(), whole.lines());
        assert_eq!(text.matches("*nat\n").count(), 4);
        assert!(text.ends_with("-j EDGEMESH-PORTALS-HOST\nCOMMIT\n"));
    }
}

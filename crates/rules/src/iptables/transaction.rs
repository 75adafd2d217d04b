//! The input of one iptables-restore.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::chain_names::{JUMP_COMMENT, MASQUERADE, MASQUERADE_COMMENT, OwnChain, POSTROUTING};
use crate::iptables::chain_content::ChainContent;
use crate::iptables::masquerade::masquerade_rules;
use crate::iptables::own_rule::{OwnRule, write_line};
use crate::iptables::parting::{Part, Parting};
use crate::iptables::service_chain::PortalTarget;
use crate::{PortalChain, Ruleset};

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
    /// Chains of portals made anew.
    buckets: BTreeMap<Backwards, NewBucket>,
    chains: String,
    rules: String,
    /// Hooks' chains made anew that hold no portals but lead to the chains of those.
    entries: String,
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

    pub(crate) fn append(&mut self, chain: PortalChain, rule: &OwnRule<'_>) {
        write_line(&mut self.rules, "-A", &chain.to_string(), rule);
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

    /// Makes the chain anew, or for the first time, with all its rules.
    pub(crate) fn rewrite(&mut self, wanted: &ChainContent<'_>) {
        let name = wanted.chain.to_string();
        self.lines += 1 + wanted.len();
        let rules = match wanted.chain {
            PortalChain::Bucket(_) => {
                let bucket = NewBucket::of(&name, wanted.rules());
                self.buckets.insert(Reverse(name), bucket);
                return;
            }
            PortalChain::Hook(_) if !wanted.portals.is_empty() => {
                write_new_chain(&mut self.chains, &name);
                &mut self.rules
            }
            PortalChain::Hook(_) => {
                write_new_chain(&mut self.entries, &name);
                &mut self.entries
            }
        };
        for rule in wanted.rules() {
            write_line(rules, "-A", &name, &rule);
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
        self.buckets.extend(other.buckets.clone());
        self.chains += &other.chains;
        self.rules += &other.rules;
        self.entries += &other.entries;
        self.jumps += &other.jumps;
        self.emptied += &other.emptied;
        self.deleted += &other.deleted;
        self.lines += other.lines;
    }

    /// The whole as one atomic step.
    pub(crate) fn text(&self) -> String {
        let changes = self.changes();
        let mut pieces = self.new_chains();
        pieces.extend(changes.iter().map(|part| part.text.as_ref()));
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut text = String::with_capacity(bytes + 16);
        section(&mut text, pieces);
        text
    }

    /// The chains that are made anew, and the rules that lead to one of them right behind it.
    fn new_chains(&self) -> Vec<&str> {
        let chains = self.whole_chains.iter();
        let mut by_chain: BTreeMap<&Backwards, Vec<&str>> = chains
            .map(|(name, text)| (name, vec![text.as_str()]))
            .collect();
        for (chain, rule) in self.buckets.values().flat_map(|new| &new.leading_on) {
            by_chain.entry(chain).or_default().push(rule);
        }
        let begun = self.buckets.values().map(|new| new.begun.as_str());
        begun.chain(by_chain.into_values().flatten()).collect()
    }

    /// The same as several steps of about `most` rules each, one after the other, for a
    /// kernel that doesn't take the whole in one message; and how many steps.
    ///
    /// The jumps come together, and so do a chain's rules where they must.
    pub(crate) fn sections(&self, most: usize) -> (String, usize) {
        let mut text = String::new();
        let mut count = 0;
        for part in self.new_parts().into_iter().chain(self.changes()) {
            for step in part.steps(most) {
                section(&mut text, [step]);
                count += 1;
            }
        }
        (text, count)
    }

    /// The chains that are made anew, each in one piece.
    fn new_parts(&self) -> [Part<'_>; 2] {
        [
            Part {
                text: self.whole_chains.values().map(String::as_str).collect(),
                parting: Parting::BeforeChains,
            },
            Part {
                text: self.buckets.values().flat_map(NewBucket::parts).collect(),
                parting: Parting::BeforeChainsIfPossible,
            },
        ]
    }

    /// What comes after them, in the order in which it must come.
    fn changes(&self) -> [Part<'_>; 6] {
        let parted = |text, parting| Part {
            text: Cow::Borrowed(text),
            parting,
        };
        [
            parted(self.chains.as_str(), Parting::Anywhere),
            parted(&self.rules, Parting::Anywhere),
            parted(&self.entries, Parting::Nowhere),
            parted(&self.jumps, Parting::Nowhere),
            parted(&self.emptied, Parting::Anywhere),
            parted(&self.deleted, Parting::Anywhere),
        ]
    }
}

/// The names of chains, the last one first. For each line, iptables-nft looks for the chain that it
/// stands in, and for the one that it leads to, in a sorted list of all that were named so far, from
/// the front (iptables `iptables/nft-cache.c`, `cache_chain_list_insert`). So a name is best said
/// again while no smaller one is there: 10,000 chains with the rules that lead to them take half
/// the time.
type Backwards = Reverse<String>;

/// A chain of portals that is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NewBucket {
    /// The chain, and its rules that lead to no other.
    begun: String,
    /// Its other rules, each with the chain that it leads to.
    leading_on: Vec<(Backwards, String)>,
}

impl NewBucket {
    fn of<'r>(name: &str, rules: impl Iterator<Item = OwnRule<'r>>) -> Self {
        let mut new = Self::default();
        write_new_chain(&mut new.begun, name);
        for rule in rules {
            match &rule {
                OwnRule::Portal {
                    to: PortalTarget::Chain(chain),
                    ..
                } => {
                    let mut line = String::new();
                    write_line(&mut line, "-A", name, &rule);
                    new.leading_on.push((Reverse(chain.clone()), line));
                }
                _ => write_line(&mut new.begun, "-A", name, &rule),
            }
        }
        new
    }

    /// All of it.
    fn parts(&self) -> impl Iterator<Item = &str> {
        let leading_on = self.leading_on.iter().map(|(_, rule)| rule.as_str());
        [self.begun.as_str()].into_iter().chain(leading_on)
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
    use edgemesh_catalog::Protocol;
    use edgemesh_plan::Frontend;

    use super::*;
    use crate::iptables::chain_content::portal_chains;
    use crate::{Mark, PortalLayout, PortalRule, RuleComment};

    /// The same ports of so many addresses whose last bits are the same.
    fn portals(count: u8, layout: PortalLayout) -> Ruleset {
        let mut rules = Ruleset::new("169.254.96.16".parse().unwrap(), 20008, Mark::AGENT);
        for number in 0..count {
            let frontend = Frontend {
                ip: [10, 96, number, 5].into(),
                protocol: Protocol::Tcp,
                port: 80,
            };
            let rule = PortalRule {
                comment: RuleComment::new("default/web:http"),
                to_port: 20007,
                kernel: None,
            };
            rules.insert(frontend, rule).unwrap();
        }
        rules.laid_out(layout)
    }

    #[test]
    fn chains_of_portals_are_split_only_where_they_are_too_long_and_what_leads_there_never() {
        let mut whole = Transaction::default();
        let wanted = portals(30, PortalLayout::ByAddress);
        for content in portal_chains(&wanted) {
            whole.rewrite(&content);
        }
        let (text, _) = whole.sections(20);
        let steps: Vec<&str> = text.split("COMMIT\n").collect();
        let buckets = steps
            .iter()
            .position(|step| step.contains("-PORTALS-05 - "));
        let at = buckets.unwrap();
        let rules = |step: &str| step.matches("-A EDGEMESH-PORTALS-05 ").count();
        assert_eq!((rules(steps[at]), rules(steps[at + 1])), (19, 11));
        assert!(steps[at].starts_with("*nat\n:EDGEMESH-PORTALS-05 - [0:0]\n-A "));
        let entries: Vec<_> = steps
            .iter()
            .filter(|step| step.contains("/0.0.0.63 -j"))
            .collect();
        let [entries] = entries[..] else {
            panic!("{text}");
        };
        assert_eq!(entries.matches("-j EDGEMESH-PORTALS-").count(), 2 * 64);
        assert_eq!(entries.matches(" - [0:0]").count(), 2);
    }

    #[test]
    fn a_split_transaction_keeps_its_order_and_ends_with_the_jumps() {
        let wanted = portals(3, PortalLayout::InBoth);
        let mut whole = Transaction::default();
        whole.rewrite(&portal_chains(&wanted)[1]);
        whole.insert_jump(OwnChain::Host, 1);
        let (text, count) = whole.sections(2);
        assert_eq!(count, 6);
        let lines = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|line| !matches!(*line, "*nat" | "COMMIT"))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(lines(&text), lines(&whole.text()));
        assert_eq!(lines(&text).len(), whole.lines());
        assert_eq!(text.matches("*nat\n").count(), 6);
        assert!(text.ends_with("-j EDGEMESH-PORTALS-HOST\nCOMMIT\n"));
    }
}

//! The input of one iptables-restore.

use std::fmt::Write;

use crate::Ruleset;
use crate::chain_names::{JUMP_COMMENT, OwnChain};
use crate::iptables::own_rule::{OwnRule, fixed_rules, portal_rules, write_line};

/// Changes of the nat table, taken over by the kernel all or none.
///
/// It is one atomic step unless it is [split](Self::sections), and even then traffic
/// reaches new chains only by the jumps, which come last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    chains: String,
    rules: String,
    jumps: String,
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

    /// Makes the chain if it is missing, and empties it.
    pub(crate) fn make_empty(&mut self, chain: OwnChain) {
        let _ = writeln!(self.chains, ":{chain} - [0:0]");
        self.lines += 1;
    }

    pub(crate) fn append(&mut self, chain: OwnChain, rule: &OwnRule<'_>) {
        write_line(&mut self.rules, "-A", chain.name(), rule);
        self.lines += 1;
    }

    /// Deletes the first rule of this text.
    pub(crate) fn delete(&mut self, chain: OwnChain, spec: &dyn std::fmt::Display) {
        write_line(&mut self.rules, "-D", chain.name(), spec);
        self.lines += 1;
    }

    /// Makes the chain anew, with all rules of `wanted`.
    pub(crate) fn rewrite(&mut self, chain: OwnChain, wanted: &Ruleset) {
        self.make_empty(chain);
        for rule in fixed_rules(wanted).into_iter().chain(portal_rules(wanted)) {
            self.append(chain, &rule);
        }
    }

    /// Inserts our jump to `chain` at a place (from 1) of its hook.
    pub(crate) fn insert_jump(&mut self, chain: OwnChain, place: usize) {
        let _ = writeln!(
            self.jumps,
            "-I {} {place} -m comment --comment \"{JUMP_COMMENT}\" -j {chain}",
            chain.hook()
        );
        self.lines += 1;
    }

    /// Deletes the first rule of this text from `chain`'s hook.
    pub(crate) fn delete_from_hook(&mut self, chain: OwnChain, spec: &str) {
        write_line(&mut self.jumps, "-D", chain.hook(), &spec);
        self.lines += 1;
    }

    /// Deletes the chain, which must be empty and not jumped to by then.
    pub(crate) fn delete_chain(&mut self, chain: OwnChain) {
        let _ = writeln!(self.jumps, "-X {chain}");
        self.lines += 1;
    }

    /// The whole as one atomic step.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes() + 16);
        section(&mut text, &[&self.chains, &self.rules, &self.jumps]);
        text
    }

    /// The same as several steps of at most `most` rules each, one after the other, for
    /// a kernel that doesn't take the whole in one message; and how many steps.
    ///
    /// The jumps come last and together.
    pub(crate) fn sections(&self, most: usize) -> (String, usize) {
        let mut text = String::with_capacity(self.bytes() + 1024);
        let mut count = 0;
        let mut add = |parts: &[&str]| {
            if parts.iter().any(|part| !part.is_empty()) {
                section(&mut text, parts);
                count += 1;
            }
        };
        add(&[&self.chains]);
        let mut rest = self.rules.as_str();
        while !rest.is_empty() {
            let end = rest
                .match_indices('\n')
                .nth(most.max(1) - 1)
                .map_or(rest.len(), |(at, _)| at + 1);
            add(&[&rest[..end]]);
            rest = &rest[end..];
        }
        add(&[&self.jumps]);
        (text, count)
    }

    fn bytes(&self) -> usize {
        self.chains.len() + self.rules.len() + self.jumps.len()
    }
}

fn section(text: &mut String, parts: &[&str]) {
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

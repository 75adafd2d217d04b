//! Rules as iptables-save prints them, taken apart.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::client::Place;
use crate::iptables::{Family, Flavour, Table};

/// The chains of one table at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleList {
    chains: BTreeMap<String, Chain>,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its policy; `None` for a chain that is not built in.
    pub policy: Option<String>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How many packets it has matched; in nat chains these are connections.
    pub packets: u64,
    /// How many bytes it has matched.
    pub bytes: u64,
    /// Everything after the chain's name, word by word, quotes removed.
    pub words: Vec<String>,
    /// Everything after the chain's name, as printed.
    pub text: String,
}

impl RuleList {
    /// Reads a table.
    ///
    /// # Errors
    ///
    /// When iptables-save fails or prints what is not understood.
    pub fn read(
        place: &impl Place,
        flavour: Flavour,
        family: Family,
        table: Table,
    ) -> Result<Self> {
        let text = flavour.save(place, family, table)?;
        Self::parse(&text).with_context(|| format!("what {} printed", flavour.tool(family, "save")))
    }

    /// Takes apart what `iptables-save --counters --table …` printed.
    ///
    /// # Errors
    ///
    /// When a line is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
        for line in text.lines() {
            if let Some(declaration) = line.strip_prefix(':') {
                let mut words = declaration.split_whitespace();
                let name = words.next().unwrap_or_default().to_owned();
                let policy = words.next().filter(|policy| *policy != "-");
                let chain = chains.entry(name).or_default();
                chain.policy = policy.map(str::to_owned);
            } else if line.starts_with('[') {
                let (chain, rule) =
                    parse_rule(line).with_context(|| format!("not understood: {line}"))?;
                chains.entry(chain).or_default().rules.push(rule);
            } else if !(line.starts_with(['#', '*']) || line == "COMMIT" || line.is_empty()) {
                bail!("not understood: {line}");
            }
        }
        Ok(Self { chains })
    }

    /// A chain by name.
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.get(name)
    }

    /// The rules of a chain, in order; none when there is no such chain.
    #[must_use]
    pub fn rules(&self, chain: &str) -> &[Rule] {
        self.chains.get(chain).map_or(&[], |chain| &chain.rules)
    }

    /// The names of all chains, sorted.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// The places (from 0) in `chain` of rules that jump to `target`.
    #[must_use]
    pub fn jumps(&self, chain: &str, target: &str) -> Vec<usize> {
        let rules = self.rules(chain).iter().enumerate();
        rules
            .filter(|(_, rule)| rule.jump() == Some(target))
            .map(|(place, _)| place)
            .collect()
    }

    /// Whether `chain` jumps to `first` before any jump to `second`. A jump to `second`
    /// that is missing is behind everything.
    #[must_use]
    pub fn jumps_before(&self, chain: &str, first: &str, second: &str) -> bool {
        match (
            self.jumps(chain, first).first(),
            self.jumps(chain, second).first(),
        ) {
            (Some(first), Some(second)) => first < second,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// The rules of a chain with this comment.
    pub fn commented<'a>(
        &'a self,
        chain: &str,
        comment: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        self.rules(chain)
            .iter()
            .filter(move |rule| rule.comment() == Some(comment))
    }

    /// Everything that does not belong to whoever's chains start with `prefix`, as text and
    /// without counters: what must stay byte for byte when that one comes and goes.
    #[must_use]
    pub fn text_without(&self, prefix: &str) -> String {
        let mut text = String::new();
        for (name, chain) in &self.chains {
            if name.starts_with(prefix) {
                continue;
            }
            text += &format!(":{name} {}\n", chain.policy.as_deref().unwrap_or("-"));
            for rule in &chain.rules {
                if !rule.jump().is_some_and(|target| target.starts_with(prefix)) {
                    text += &format!("-A {name} {}\n", rule.text);
                }
            }
        }
        text
    }
}

impl Rule {
    /// Where the rule sends what it matches: a chain, or a target such as `DNAT`.
    #[must_use]
    pub fn jump(&self) -> Option<&str> {
        self.option("-j").or_else(|| self.option("-g"))
    }

    /// Its comment.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        self.option("--comment")
    }

    /// The word after `option`, e.g. `--dport`.
    #[must_use]
    pub fn option(&self, option: &str) -> Option<&str> {
        let place = self.words.iter().position(|word| word == option)?;
        self.words.get(place + 1).map(String::as_str)
    }
}

/// `[packets:bytes] -A CHAIN words…`
fn parse_rule(line: &str) -> Result<(String, Rule)> {
    let (counters, rest) = line
        .strip_prefix('[')
        .and_then(|line| line.split_once("] -A "))
        .context("no counters")?;
    let (packets, bytes) = counters.split_once(':').context("no counters")?;
    let (chain, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let rule = Rule {
        packets: packets.parse().context("counter of packets")?,
        bytes: bytes.parse().context("counter of bytes")?,
        words: split_words(text),
        text: text.to_owned(),
    };
    Ok((chain.to_owned(), rule))
}

/// Splits at blanks, except within double quotes, where a backslash protects the next
/// character (iptables: `xtables_save_string`).
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-nft-save
*nat
:PREROUTING ACCEPT [1:60]
:KUBE-SERVICES - [0:0]
:MINE-A - [0:0]
[7:420] -A PREROUTING -m comment --comment "mine; \"quoted\"" -j MINE-A
[3:180] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A MINE-A -d 10.96.10.1/32 -p tcp -m comment --comment default/web:http -m tcp --dport 80 -j DNAT --to-destination 169.254.96.16:20007
COMMIT
# Completed
"#;

    #[test]
    fn a_saved_table_is_taken_apart() {
        let rules = RuleList::parse(SAVED).unwrap();
        assert_eq!(
            rules.chain_names().collect::<Vec<_>>(),
            ["KUBE-SERVICES", "MINE-A", "PREROUTING"]
        );
        assert_eq!(
            rules.chain("PREROUTING").unwrap().policy.as_deref(),
            Some("ACCEPT")
        );
        assert_eq!(rules.chain("MINE-A").unwrap().policy, None);
        assert_eq!(rules.jumps("PREROUTING", "KUBE-SERVICES"), [1]);
        assert!(rules.jumps_before("PREROUTING", "MINE-A", "KUBE-SERVICES"));
        assert!(!rules.jumps_before("PREROUTING", "KUBE-SERVICES", "MINE-A"));
        assert_eq!(rules.rules("PREROUTING")[0].packets, 7);
        assert_eq!(
            rules.rules("PREROUTING")[0].comment(),
            Some("mine; \"quoted\"")
        );
        let portal = rules
            .commented("MINE-A", "default/web:http")
            .next()
            .unwrap();
        assert_eq!(portal.option("--dport"), Some("80"));
        assert_eq!(portal.jump(), Some("DNAT"));
    }

    #[test]
    fn foreign_text_holds_neither_my_chains_nor_jumps_to_them_nor_counters() {
        let foreign = RuleList::parse(SAVED).unwrap().text_without("MINE-");
        assert_eq!(
            foreign,
            ":KUBE-SERVICES -\n:PREROUTING ACCEPT\n-A PREROUTING -m comment --comment \
             \"kubernetes service portals\" -j KUBE-SERVICES\n"
        );
    }

    #[test]
    fn a_line_that_is_no_rule_is_an_error() {
        assert!(RuleList::parse("[x:y] -A PREROUTING").is_err());
        assert!(RuleList::parse("nonsense").is_err());
    }
}

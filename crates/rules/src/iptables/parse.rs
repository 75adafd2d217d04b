//! The nat table, read from what iptables-save printed.
//!
//! Nothing is copied: the table borrows the text. Foreign rules are looked at only as far
//! as they concern us, so that tens of thousands of them cost next to nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::chain_names::{
    KUBE_SERVICES, MASQUERADE, MASQUERADE_COMMENT, OWN_PREFIX, OwnChain, POSTROUTING,
    SERVICE_PREFIX,
};
use crate::iptables::own_rule::{OwnRule, recognise};
use crate::iptables::words::Words;
use crate::{Bucket, JUMP_COMMENT, PortalChain};

/// What the nat table holds, as far as it concerns us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table<'a> {
    own: [Option<Vec<FoundRule<'a>>>; 2],
    hooks: [Vec<HookRule<'a>>; 2],
    /// The chains of portals whose addresses end alike, with their rules.
    pub(crate) buckets: BTreeMap<Bucket, Vec<FoundRule<'a>>>,
    /// The chains by which portals are shared among endpoints, by name, with their rules.
    pub(crate) services: BTreeMap<&'a str, Vec<&'a str>>,
    /// The rules of the chain that masquerades; none when there is no such chain.
    pub(crate) masquerade: Option<Vec<&'a str>>,
    /// The rules of POSTROUTING.
    pub(crate) postrouting: Vec<HookRule<'a>>,
    /// Rules of others, but for jumps that we take for ours, that lead into our chains.
    pub(crate) references: Vec<&'a str>,
    /// Whether kube-proxy's entry chain exists.
    pub(crate) kube_services: bool,
    /// How many lines there are in all.
    pub(crate) lines: usize,
}

/// A rule in a chain of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundRule<'a> {
    /// Its text as read, without `-A CHAIN`.
    pub(crate) spec: &'a str,
    /// What it is; none when it is a stranger's.
    pub(crate) rule: Option<OwnRule<'a>>,
}

/// A rule in PREROUTING or OUTPUT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HookRule<'a> {
    /// Its text as read, without `-A CHAIN`.
    pub(crate) spec: &'a str,
    /// Where it leads.
    pub(crate) leads: Leads,
}

/// Where a rule of a hook leads, as far as it concerns us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// Our jump, exactly as we make it.
    Ours,
    /// Into a chain of ours, but not as we make it: conditional, with another comment,
    /// or into the chain of the other hook.
    OursAltered,
    /// To kube-proxy.
    KubeServices,
    /// Somewhere else.
    Elsewhere,
}

impl Leads {
    /// Whether it leads into a chain of ours.
    pub(crate) fn to_us(self) -> bool {
        match self {
            Leads::Ours | Leads::OursAltered => true,
            Leads::KubeServices | Leads::Elsewhere => false,
        }
    }
}

impl<'a> Table<'a> {
    /// Reads the output of `iptables-save`, with or without counters, of either flavour.
    /// Other tables than nat and lines that are none of iptables-save's are passed over.
    pub(crate) fn parse(text: &'a str) -> Self {
        let mut table = Self::default();
        let mut in_nat = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                in_nat = name.trim_end() == "nat";
            } else if in_nat {
                table.lines += 1;
                table.read_line(line);
            }
        }
        table
    }

    /// The rules of a chain of ours; none when the chain doesn't exist.
    pub(crate) fn own(&self, chain: OwnChain) -> Option<&[FoundRule<'a>]> {
        self.own[chain.index()].as_deref()
    }

    /// The rules of a chain of ours that may hold portals; none when the chain doesn't exist.
    pub(crate) fn portal_chain(&self, chain: PortalChain) -> Option<&[FoundRule<'a>]> {
        match chain {
            PortalChain::Hook(own) => self.own(own),
            PortalChain::Bucket(bucket) => self.buckets.get(&bucket).map(Vec::as_slice),
        }
    }

    /// The rules of the built-in chain that shall jump to `chain`.
    pub(crate) fn hook(&self, chain: OwnChain) -> &[HookRule<'a>] {
        &self.hooks[chain.index()]
    }

    /// How many rules are in our chains.
    pub(crate) fn own_rules(&self) -> usize {
        let portals = self.own.iter().flatten().chain(self.buckets.values());
        let portals = portals.map(Vec::len);
        let services = self.services.values().map(Vec::len);
        let masquerade = self.masquerade.iter().map(Vec::len);
        portals.chain(services).chain(masquerade).sum()
    }

    /// How many rules of the hooks lead into our chains.
    pub(crate) fn own_jumps(&self) -> usize {
        let rules = self.hooks.iter().flatten().chain(&self.postrouting);
        rules.filter(|rule| rule.leads.to_us()).count()
    }

    fn read_line(&mut self, line: &'a str) {
        if let Some(chain) = line.strip_prefix(':') {
            self.read_chain(first_word(chain).0);
        } else if let Some(rule) = without_counters(line).strip_prefix("-A ") {
            let (chain, spec) = first_word(rule);
            self.read_rule(rule, chain, spec);
        }
    }

    fn read_chain(&mut self, name: &'a str) {
        if let Some(own) = OwnChain::by_name(name) {
            self.own[own.index()].get_or_insert_default();
        } else if let Some(bucket) = Bucket::by_name(name) {
            self.buckets.entry(bucket).or_default();
        } else if name.starts_with(SERVICE_PREFIX) {
            self.services.entry(name).or_default();
        } else if name == MASQUERADE {
            self.masquerade.get_or_insert_default();
        } else if name == KUBE_SERVICES {
            self.kube_services = true;
        }
    }

    fn read_rule(&mut self, rule: &'a str, chain: &'a str, spec: &'a str) {
        let found = || FoundRule {
            spec,
            rule: recognise(spec),
        };
        if let Some(own) = OwnChain::by_name(chain) {
            self.own[own.index()].get_or_insert_default().push(found());
        } else if let Some(bucket) = Bucket::by_name(chain) {
            self.buckets.entry(bucket).or_default().push(found());
        } else if chain.starts_with(SERVICE_PREFIX) {
            self.services.entry(chain).or_default().push(spec);
        } else if chain == MASQUERADE {
            self.masquerade.get_or_insert_default().push(spec);
        } else {
            let leads = self.read_hook_rule(chain, spec);
            let is_ours = leads.is_some_and(Leads::to_us);
            if !is_ours && spec.contains(OWN_PREFIX) && is_own(Target::of(spec).name()) {
                self.references.push(rule);
            }
        }
    }

    /// Where a rule leads, if it is one of a hook.
    fn read_hook_rule(&mut self, chain: &str, spec: &'a str) -> Option<Leads> {
        let (rules, leads) = if let Some(own) = OwnChain::by_hook(chain) {
            (&mut self.hooks[own.index()], leads(spec, own))
        } else if chain == POSTROUTING {
            (&mut self.postrouting, leads_to_masquerade(spec))
        } else {
            return None;
        };
        rules.push(HookRule { spec, leads });
        Some(leads)
    }
}

fn is_own(chain: Option<&str>) -> bool {
    chain.is_some_and(|name| {
        OwnChain::by_name(name).is_some()
            || Bucket::by_name(name).is_some()
            || name.starts_with(SERVICE_PREFIX)
            || name == MASQUERADE
    })
}

/// Counters, where they are printed, stand before the rule: `[12:3456] -A …`.
fn without_counters(line: &str) -> &str {
    match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, rule)) => rule,
        None => line,
    }
}

fn first_word(text: &str) -> (&str, &str) {
    match text.split_once(' ') {
        Some((word, rest)) => (word, rest),
        None => (text.trim_end(), ""),
    }
}

fn leads(spec: &str, hook_of: OwnChain) -> Leads {
    if !spec.contains(OWN_PREFIX) && !spec.contains(KUBE_SERVICES) {
        return Leads::Elsewhere;
    }
    let target = Target::of(spec);
    match target.name().and_then(OwnChain::by_name) {
        Some(chain) if chain == hook_of && target.is_plain_jump(JUMP_COMMENT) => Leads::Ours,
        Some(_) => Leads::OursAltered,
        None if target.name() == Some(KUBE_SERVICES) => Leads::KubeServices,
        None => Leads::Elsewhere,
    }
}

fn leads_to_masquerade(spec: &str) -> Leads {
    if !spec.contains(MASQUERADE) {
        return Leads::Elsewhere;
    }
    let target = Target::of(spec);
    match target.name() {
        Some(MASQUERADE) if target.is_plain_jump(MASQUERADE_COMMENT) => Leads::Ours,
        Some(MASQUERADE) => Leads::OursAltered,
        Some(_) | None => Leads::Elsewhere,
    }
}

/// Where a rule leads, and whether it does so as our jumps do.
struct Target<'a> {
    name: Option<Cow<'a, str>>,
    jumps: bool,
    comments: Vec<Cow<'a, str>>,
    unconditional: bool,
}

impl<'a> Target<'a> {
    fn of(spec: &'a str) -> Self {
        let mut target = Self {
            name: None,
            jumps: false,
            comments: Vec::new(),
            unconditional: true,
        };
        let mut words = Words::of(spec);
        while let Some(word) = words.next() {
            match word.as_ref() {
                option @ ("-j" | "--jump" | "-g" | "--goto") => {
                    target.jumps = option.starts_with("-j") || option.starts_with("--j");
                    target.name = words.next();
                }
                "-m" | "--match" => {
                    target.unconditional &= words.next().as_deref() == Some("comment");
                }
                "--comment" => target.comments.extend(words.next()),
                _ => target.unconditional = false,
            }
        }
        target
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn is_plain_jump(&self, comment: &str) -> bool {
        self.jumps && self.unconditional && matches!(&self.comments[..], [only] if only == comment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBE: &str = r#"-m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#;

    fn ours() -> String {
        format!("-m comment --comment \"{JUMP_COMMENT}\" -j EDGEMESH-PORTALS-CONTAINER")
    }

    fn hook(rule: &str) -> Leads {
        let text = format!("*nat\n-A PREROUTING {rule}\nCOMMIT\n");
        Table::parse(&text).hook(OwnChain::Container)[0].leads
    }

    #[test]
    fn jumps_are_told_apart() {
        assert_eq!(hook(&ours()), Leads::Ours);
        assert_eq!(hook(KUBE), Leads::KubeServices);
        assert_eq!(hook("-j cali-PREROUTING"), Leads::Elsewhere);
        assert_eq!(
            hook("-m comment --comment \"see KUBE-SERVICES\" -j X"),
            Leads::Elsewhere
        );
        assert_eq!(
            hook("-m comment --comment \"-j EDGEMESH-PORTALS-HOST\" -j X"),
            Leads::Elsewhere
        );
    }

    #[test]
    fn a_disguised_jump_to_our_chain_is_ours_but_not_as_we_make_it() {
        for disguised in [
            ours().replace("-CONTAINER", "-HOST"),
            ours().replace("-j ", "-g "),
            ours().replace("handle", "Handle"),
            format!("-p tcp {}", ours()),
            format!("-i eth0 {}", ours()),
            "-j EDGEMESH-PORTALS-CONTAINER".to_owned(),
        ] {
            assert_eq!(hook(&disguised), Leads::OursAltered, "{disguised}");
        }
    }

    #[test]
    fn counters_and_other_tables_change_nothing() {
        let text = format!(
            "# Generated by iptables-save v1.8.9 (nf_tables)\n*filter\n\
             :EDGEMESH-PORTALS-HOST - [0:0]\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n*nat\n\
             :PREROUTING ACCEPT [5:300]\n:EDGEMESH-PORTALS-CONTAINER - [0:0]\n\
             [5:300] -A PREROUTING {}\n[0:0] -A EDGEMESH-PORTALS-CONTAINER -j RETURN\nCOMMIT\n",
            ours()
        );
        let table = Table::parse(&text);
        assert_eq!(table.own(OwnChain::Host), None);
        assert!(table.hook(OwnChain::Host).is_empty());
        assert_eq!(table.hook(OwnChain::Container)[0].leads, Leads::Ours);
        let found = table.own(OwnChain::Container).unwrap();
        assert_eq!(found[0].spec, "-j RETURN");
        assert_eq!(found[0].rule, None);
    }

    #[test]
    fn foreign_chains_that_lead_into_ours_are_noticed() {
        let text = "*nat\n-A MINE -p tcp -j EDGEMESH-PORTALS-HOST\n-A MINE -j OTHER\n\
                    -A MINE -m comment --comment EDGEMESH-PORTALS-HOST -j OTHER\n";
        let table = Table::parse(text);
        assert_eq!(table.references, ["MINE -p tcp -j EDGEMESH-PORTALS-HOST"]);
        assert_eq!(table.own_jumps(), 0);
    }
}

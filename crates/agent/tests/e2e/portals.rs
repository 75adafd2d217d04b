//! The agent's rules beside kube-proxy's, as iptables-save shows them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use edgemesh_lab::{Family, Flavour, Place, Rule, RuleList, Table};

/// A built-in chain of the nat table and the agent's chain that it jumps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The built-in chain.
    pub(crate) from: &'static str,
    /// The agent's.
    pub(crate) to: &'static str,
}

/// Where connections of pods (and of other hosts) come in.
pub(crate) const CONTAINER: Entry = Entry {
    from: "PREROUTING",
    to: "EDGEMESH-PORTALS-CONTAINER",
};

/// Where connections of the node itself come in.
pub(crate) const HOST: Entry = Entry {
    from: "OUTPUT",
    to: "EDGEMESH-PORTALS-HOST",
};

/// Both.
pub(crate) const ENTRIES: [Entry; 2] = [CONTAINER, HOST];

/// The prefix of all that is the agent's.
const OURS: &str = "EDGEMESH-";
const KUBE_SERVICES: &str = "KUBE-SERVICES";
const KUBE_NODEPORTS: &str = "KUBE-NODEPORTS";

/// The nat table of a node, of one family.
#[derive(Debug)]
pub(crate) struct Portals(RuleList);

impl Portals {
    /// Reads it.
    pub(crate) fn read(node: &impl Place, flavour: Flavour, family: Family) -> Result<Self> {
        RuleList::read(node, flavour, family, Table::Nat).map(Self)
    }

    /// Fails unless both entries jump to the agent's chain once, before kube-proxy's.
    pub(crate) fn come_first(&self) -> Result<()> {
        for Entry { from, to } in ENTRIES {
            let jumps = self.0.jumps(from, to);
            ensure!(jumps.len() == 1, "{from} has {} jumps to {to}", jumps.len());
            ensure!(
                self.0.jumps_before(from, to, KUBE_SERVICES),
                "{from} has {to} behind {KUBE_SERVICES}"
            );
        }
        Ok(())
    }

    /// Fails unless kube-proxy has written all that it has for this family.
    pub(crate) fn stand_beside_kube_proxy(&self) -> Result<()> {
        for Entry { from, .. } in ENTRIES {
            let jumps = self.0.jumps(from, KUBE_SERVICES);
            ensure!(!jumps.is_empty(), "{from} has no jump to {KUBE_SERVICES}");
        }
        // It writes all rules at once, and this one in any case (kube-proxy
        // pkg/proxy/iptables/proxier.go).
        let last = self.0.rules(KUBE_SERVICES).last();
        let to = last.and_then(Rule::jump);
        ensure!(
            to == Some(KUBE_NODEPORTS),
            "{KUBE_SERVICES} ends with a jump to {to:?}"
        );
        Ok(())
    }

    /// Fails unless kube-proxy has a rule for the service port.
    pub(crate) fn kube_proxy_serves(&self, port_name: &str) -> Result<()> {
        let comment = format!("{port_name} cluster IP");
        let found = self.0.commented(KUBE_SERVICES, &comment).next();
        ensure!(found.is_some(), "kube-proxy has no rule for {port_name}");
        Ok(())
    }

    /// Fails unless both of the agent's chains have exactly one rule for the service port.
    pub(crate) fn intercept(&self, port_name: &str) -> Result<()> {
        for Entry { to, .. } in ENTRIES {
            let count = self.0.commented(to, port_name).count();
            ensure!(count == 1, "{to} has {count} rules for {port_name}");
        }
        Ok(())
    }

    /// Fails if any of the agent's rules mentions the service port.
    pub(crate) fn leave_alone(&self, port_name: &str) -> Result<()> {
        for rule in self.ours() {
            let mentioned = rule.words.iter().any(|word| word.starts_with(port_name));
            ensure!(!mentioned, "there is a rule for {port_name}: {}", rule.text);
        }
        Ok(())
    }

    /// Fails if a rule of the agent's is there twice.
    pub(crate) fn are_unique(&self) -> Result<()> {
        for Entry { to, .. } in ENTRIES {
            let mut seen = BTreeSet::new();
            for rule in self.0.rules(to) {
                ensure!(seen.insert(&rule.text), "twice in {to}: {}", rule.text);
            }
        }
        Ok(())
    }

    /// Fails if anything of the agent's is left.
    pub(crate) fn are_gone(&self) -> Result<()> {
        let chain = self.0.chain_names().find(|name| name.starts_with(OURS));
        ensure!(
            chain.is_none(),
            "there is still {}",
            chain.unwrap_or_default()
        );
        for Entry { from, to } in ENTRIES {
            let jumps = self.0.jumps(from, to);
            ensure!(jumps.is_empty(), "{from} still jumps to {to}");
        }
        Ok(())
    }

    /// How many connections a chain of the agent's has caught for a service port.
    pub(crate) fn caught(&self, entry: Entry, port_name: &str) -> u64 {
        let rules = self.0.commented(entry.to, port_name);
        rules.map(|rule| rule.packets).sum()
    }

    /// How many connections the agent's chains have caught in all.
    pub(crate) fn caught_in_all(&self) -> u64 {
        // To the agent or an endpoint, or into a chain that chooses among several.
        let takes = |target: &str| target == "DNAT" || target.starts_with("EDGEMESH-SVC-");
        let caught = self.ours().filter(|rule| rule.jump().is_some_and(takes));
        caught.map(|rule| rule.packets).sum()
    }

    /// The rules of a chain of the agent's, as text.
    pub(crate) fn texts(&self, entry: Entry) -> Vec<&str> {
        let rules = self.0.rules(entry.to).iter();
        rules.map(|rule| rule.text.as_str()).collect()
    }

    /// Where in a built-in chain the jump to `target` stands, from 0.
    pub(crate) fn place(&self, entry: Entry, target: &str) -> Option<usize> {
        self.0.jumps(entry.from, target).first().copied()
    }

    fn ours(&self) -> impl Iterator<Item = &Rule> {
        ENTRIES.into_iter().flat_map(|entry| self.0.rules(entry.to))
    }
}

/// All rules of a node that are not the agent's, without counters: what must stay as it
/// is, byte for byte.
pub(crate) fn foreign_rules(node: &impl Place, flavour: Flavour) -> Result<String> {
    let mut text = String::new();
    for family in Family::ALL {
        for table in [Table::Nat, Table::Filter, Table::Mangle] {
            let rules = RuleList::read(node, flavour, family, table)?;
            text += &format!("# {} {}\n", family.command(), table.name());
            text += &rules.text_without(OURS);
        }
    }
    Ok(text)
}

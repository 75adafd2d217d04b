//! What an agent promises of the node it runs on, as checks: where its chains stand, that
//! foreign rules are as they were, and that it leaves nothing.

use anyhow::{Result, ensure};

use crate::client::Place;
use crate::iptables::{Family, Flavour, Table};
use crate::node::Node;
use crate::rule_list::RuleList;

/// The agent's chains, after the built-in ones that jump to them.
const JUMPS: [(&str, &str); 2] = [
    ("PREROUTING", "EDGEMESH-PORTALS-CONTAINER"),
    ("OUTPUT", "EDGEMESH-PORTALS-HOST"),
];
/// The addresses it keeps on `lo` by default.
const ADDRESSES: [&str; 2] = ["169.254.96.16", "fd00:ed6e:6d65:7368::1"];
/// The routing table of its last-resort routes in IPv6, where a rule leads there.
const ROUTING_TABLE: &str = "9616";
/// The protocol number of all its routes.
const PROTOCOL: &str = "proto 237";

/// Checks what the agent promises of its rules: in each family, one jump to each of its
/// chains, before any of kube-proxy's, and in each chain one rule per portal of
/// `portals` (`namespace/name:port`). On a node without IPv6 that family is left out.
///
/// # Errors
///
/// When something is otherwise: says what.
pub fn check_precedence(node: &Node, flavour: Flavour, portals: &[&str]) -> Result<()> {
    for family in node.families() {
        let nat = RuleList::read(node, flavour, *family, Table::Nat)?;
        for (chain, ours) in JUMPS {
            let jumps = nat.jumps(chain, ours).len();
            ensure!(
                jumps == 1,
                "{family:?}: {jumps} jumps from {chain} to {ours}"
            );
            ensure!(
                nat.jumps_before(chain, ours, "KUBE-SERVICES"),
                "{family:?}: {ours} stands behind KUBE-SERVICES in {chain}"
            );
            for portal in portals {
                let rules = nat.commented(ours, portal).count();
                ensure!(
                    rules == 1,
                    "{family:?}: {rules} rules for {portal} in {ours}"
                );
            }
        }
    }
    Ok(())
}

/// Everything in the filter, mangle and nat tables of both families that is not the
/// agent's, as text without counters.
///
/// # Errors
///
/// Those of iptables-save.
pub fn foreign_rules(node: &Node, flavour: Flavour) -> Result<String> {
    let mut text = String::new();
    for family in Family::ALL {
        for table in [Table::Filter, Table::Mangle, Table::Nat] {
            let rules = RuleList::read(node, flavour, family, table)?;
            text += &format!("{family:?} {}\n", table.name());
            text += &rules.text_without("EDGEMESH-");
        }
    }
    Ok(text)
}

/// Checks that nothing of the agent is left on the node: no chain in either flavour, no
/// address, rule or route.
///
/// # Errors
///
/// When something is: says what.
pub fn check_nothing_left(node: &Node) -> Result<()> {
    for family in Family::ALL {
        for flavour in Flavour::ALL {
            let saved = flavour.save(node, family, Table::Nat)?;
            ensure!(
                !saved.contains("EDGEMESH"),
                "left in iptables-{flavour}, {family:?}:\n{saved}"
            );
        }
    }
    // A host without nft has no table of it either.
    if let Ok(tables) = node.program("nft").args(["list", "tables"]).output() {
        let listed = tables.stdout;
        ensure!(!listed.contains("edgemesh"), "left of nftables:\n{listed}");
    }
    // Nor do sets show where there is no ipset.
    if let Ok(sets) = node.program("ipset").args(["list", "-name"]).output() {
        let listed = sets.stdout;
        ensure!(!listed.contains("EDGEMESH"), "left of IP sets:\n{listed}");
    }
    let ip = |words: &str| node.program("ip").args(words.split_whitespace()).run();
    let addresses = ip("address show dev lo")?;
    for address in ADDRESSES {
        ensure!(!addresses.contains(address), "left on lo:\n{addresses}");
    }
    for family in ["-4", "-6"] {
        let rules = ip(&format!("{family} rule"))?;
        ensure!(
            !rules.contains(ROUTING_TABLE),
            "left of ip {family} rule:\n{rules}"
        );
        let routes = ip(&format!("{family} route show table all"))?;
        ensure!(
            !routes.contains(PROTOCOL),
            "left of ip {family} route:\n{routes}"
        );
    }
    Ok(())
}

//! Removing whatever agents left on this node, however they were configured.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::gate::remove_sets;
use crate::host_network::remove_left_behind;
use crate::iptables::installed::installed;
use crate::leftover::may_hold_chains;
use crate::nf_tables::NfTables;
use crate::nftables::leftover::{Leftovers, remove_leftovers, remove_refusing};
use crate::nftables::table_name::TableName;
use crate::removal::remove_all;
use crate::stale_flows::remove_stale_flows;
use crate::{Family, Flavour, Mark, NftablesError, Removed, Ruleset};

/// What [`cleanup`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanedUp {
    /// What was removed, one line each, to be shown as it is.
    pub removed: Vec<String>,
    /// What could not be removed and what to do about it, one line each.
    pub problems: Vec<String>,
}

impl fmt::Display for CleanedUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() && self.problems.is_empty() {
            return f.write_str("nothing to remove\n");
        }
        for line in &self.removed {
            writeln!(f, "removed {line}")?;
        }
        for line in &self.problems {
            writeln!(f, "problem: {line}")?;
        }
        Ok(())
    }
}

/// Removes everything that an agent can have left: chains and jumps of both families in
/// both flavours of iptables, tables of nftables that no process holds, last-resort routes and their rule, the intercept address.
///
/// `intercepts` are the intercept addresses to look for: UDP flows that lead there are ended,
/// and on kernels before 5.18, where an address can't carry a tag, the addresses are told by
/// them. To be called while no agent runs. Fine
/// when nothing is there; then nothing is changed.
pub async fn cleanup(intercepts: &[IpAddr]) -> CleanedUp {
    let mut done = CleanedUp::default();
    for family in Family::BOTH {
        clean_rules(&mut done, family).await;
        clean_tables(&mut done, family);
        match remove_sets(family) {
            Ok(false) => {}
            Ok(true) => done
                .removed
                .push(format!("the IP sets EDGEMESH-* ({family})")),
            Err(error) => done.problems.push(format!(
                "the IP sets EDGEMESH-* can't be removed: {error} ({family}); is a rule left \
                 that asks them? delete it and run this again"
            )),
        }
        match remove_left_behind(family, intercepts).await {
            Ok(changes) if changes.is_nothing() => {}
            Ok(changes) => done.removed.push(format!("{changes} ({family})")),
            Err(error) => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(ToString::to_string).unwrap_or_default();
                done.problems.push(format!("{error} ({family}): {cause}"));
            }
        }
    }
    for intercept in intercepts {
        let nothing = Ruleset::new(*intercept, 0, Mark::AGENT);
        match remove_stale_flows(Arc::new(nothing), Arc::default()).await {
            Ok(0) => {}
            Ok(flows) => done.removed.push(format!(
                "{flows} UDP flows to {intercept} from connection tracking"
            )),
            Err(error) => tracing::debug!(%error, %intercept, "UDP flows are left"),
        }
    }
    done
}

async fn clean_rules(done: &mut CleanedUp, family: Family) {
    let tools = installed(family).await;
    for flavour in Flavour::BOTH {
        if !may_hold_chains(family, flavour) {
            continue;
        }
        let Some(tools) = tools.iter().find(|tools| tools.flavour == flavour) else {
            done.problems.push(format!(
                "the {family} nat table of iptables-{flavour} may hold chains of ours, but \
                 {}-{flavour} is not installed; install the package iptables and run this again",
                family.tool()
            ));
            continue;
        };
        match remove_all(tools).await {
            Ok(removed) => report(done, family, flavour, &removed),
            Err(error) => done.problems.push(error.to_string()),
        }
    }
}

fn clean_tables(done: &mut CleanedUp, family: Family) {
    if NfTables::open().is_err() {
        return;
    }
    match remove_tables(family) {
        Ok(leftovers) => {
            let tables = leftovers.removed.iter();
            done.removed
                .extend(tables.map(|table| format!("the nftables table {table}")));
            for (table, owner) in leftovers.held {
                done.problems.push(format!(
                    "the nftables table {table} belongs to a process that runs (its netlink \
                     port is {owner}; mostly that is its process id) and goes with it; stop \
                     that agent"
                ));
            }
        }
        Err(error) => done.problems.push(error.to_string()),
    }
}

/// What refuses while nobody serves stays where an agent turns out to run: it is in use.
fn remove_tables(family: Family) -> Result<Leftovers, NftablesError> {
    let mut leftovers = remove_leftovers(family, None)?;
    if leftovers.held.is_empty() && remove_refusing(family)? {
        leftovers.removed.push(TableName::refusing(family));
    }
    Ok(leftovers)
}

fn report(done: &mut CleanedUp, family: Family, flavour: Flavour, removed: &Removed) {
    if removed.rules > 0 || removed.jumps > 0 {
        done.removed.push(format!(
            "{} rules and {} jumps ({}, {flavour})",
            removed.rules,
            removed.jumps,
            family.tool()
        ));
    }
    for rule in &removed.kept_by {
        done.problems.push(format!(
            "a rule that is not ours leads into a chain of ours, which is empty now: \
             \"{rule}\" ({}, {flavour}); delete that rule and run this again",
            family.tool()
        ));
    }
}

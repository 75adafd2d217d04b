//! What the nat tables of this host, and our own table, hold for a portal: read, never
//! changed.
//!
//! For people who ask who handles a connection. Our own repairs read the rules in
//! another way, which looks at no counter and at nothing of kube-proxy's.

mod kernel_path_view;
mod kube_proxy_element;
mod kube_proxy_portals;
mod nat_view;
#[cfg(test)]
mod nat_view_tests;
mod nft_chains;
mod standing_rule;

use crate::iptables::installed::{Tools, installed};
use crate::{Family, Flavour};

pub use kernel_path_view::{MasqueradeFound, PortalLeads, SentTo};
pub use kube_proxy_element::{NftElement, kube_proxy_element};
pub use kube_proxy_portals::kube_proxy_portals;
pub use nat_view::{Hook, KubeAction, KubeRule, NatView, PortalFound};
pub use nft_chains::{BaseChain, base_chains};
pub use standing_rule::StandingRule;

pub use crate::nftables::own_tables::{
    ChainFound, ElementFound, SharedFound, TableFound, own_tables,
};
pub use crate::nftables::refuse_table::refused_portals;

/// One flavour's nat table of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The family.
    pub family: Family,
    /// The flavour.
    pub flavour: Flavour,
    /// What it holds, or why that can't be told.
    pub nat: Result<NatView, String>,
}

/// A program that the agent may use, as found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolFound {
    /// Its name.
    pub name: &'static str,
    /// Where it is and what it says about its version; none when it is not there.
    pub version: Option<Result<String, String>>,
}

/// Reads the nat tables of a family in every flavour that is installed. Changes nothing: a
/// table that iptables-legacy would have to make first is not looked at, and counts as empty.
pub async fn inspect(family: Family) -> Vec<Inspected> {
    let mut inspected = Vec::new();
    for tools in installed(family).await {
        inspected.push(Inspected {
            family,
            flavour: tools.flavour,
            nat: read(&tools).await,
        });
    }
    inspected
}

async fn read(tools: &Tools) -> Result<NatView, String> {
    let mut view = NatView::default();
    for table in ["nat", "filter"] {
        if tools.may_have_table(table) {
            let text = tools
                .save_with_counters(table)
                .await
                .map_err(|error| error.to_string())?;
            view.read(table, &text);
        }
    }
    Ok(view)
}

/// Looks for the programs that the agent uses, or that help to find out what it did.
pub async fn find_tools() -> Vec<ToolFound> {
    const TOOLS: [(&str, &str); 8] = [
        ("iptables-nft", "-V"),
        ("iptables-legacy", "-V"),
        ("iptables", "-V"),
        ("ip6tables-nft", "-V"),
        ("ip6tables-legacy", "-V"),
        ("ip6tables", "-V"),
        ("nft", "-v"),
        ("ip", "-V"),
    ];
    let mut found = Vec::new();
    for (name, flag) in TOOLS {
        found.push(ToolFound {
            name,
            version: crate::iptables::version_of(name, flag).await,
        });
    }
    found
}

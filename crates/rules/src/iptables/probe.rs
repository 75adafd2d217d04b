//! Looks for the traces of kube-proxy and kubelet, without leaving any.

use crate::Family;
use crate::iptables::flavour::{
    Flavour, FlavourChoice, FlavourSetting, Hint, NoFlavour, Traces, choose,
};
use crate::iptables::installed::{Tools, installed};
use crate::nf_tables::NfTables;

/// The tools to use for a family, and why these.
pub(crate) struct Probed {
    pub(crate) tools: Tools,
    pub(crate) choice: FlavourChoice,
    /// The tools of the other flavour, if that could be chosen as well.
    pub(crate) alternative: Option<Tools>,
}

/// Chooses the tools for `family`.
pub(crate) async fn probe(family: Family, setting: FlavourSetting) -> Result<Probed, NoFlavour> {
    let mut tools = installed(family).await;
    let flavours: Vec<Flavour> = tools.iter().map(|tools| tools.flavour).collect();
    let undecided = setting == FlavourSetting::Auto && flavours.len() > 1;
    let own = if undecided {
        traces(family, &tools).await
    } else {
        Traces::default()
    };
    let other = if undecided && own.is_empty() {
        traces(family.other(), &installed(family.other()).await).await
    } else {
        Traces::default()
    };
    let choice = choose(family, setting, &flavours, &own, &other)?;
    let chosen = tools
        .iter()
        .position(|tools| tools.flavour == choice.flavour)
        .map(|place| tools.remove(place))
        .ok_or(NoFlavour::NotInstalled(family))?;
    Ok(Probed {
        tools: chosen,
        choice,
        alternative: tools.pop().filter(|_| undecided),
    })
}

/// Chooses again between two, by the traces in `family` alone; none when there are none.
pub(crate) async fn probe_again(tools: [&Tools; 2]) -> Option<FlavourChoice> {
    let family = tools[0].family;
    let own = traces(family, &tools.map(Tools::clone)).await;
    if own.is_empty() {
        return None;
    }
    choose(
        family,
        FlavourSetting::Auto,
        &Flavour::BOTH,
        &own,
        &Traces::default(),
    )
    .ok()
}

/// Whether kube-proxy's entry chain is in the nat table of either flavour.
pub(crate) async fn kube_services_in(family: Family) -> bool {
    let is_entry = |hints: Vec<Hint>| hints.contains(&Hint::KubeServices);
    if is_entry(nft_traces(family)) {
        return true;
    }
    let tools = installed(family).await;
    let legacy = tools.iter().find(|tools| tools.flavour == Flavour::Legacy);
    match legacy {
        Some(tools) => is_entry(legacy_traces(tools).await),
        None => false,
    }
}

/// Whether kube-proxy's rules are in nf_tables, by way of iptables-nft or in its nftables
/// mode (kubernetes `pkg/proxy/nftables/proxier.go`). Asks the kernel alone.
pub(crate) fn has_kube_proxy_in_nf_tables(family: Family) -> bool {
    let places = [("nat", crate::KUBE_SERVICES), ("kube-proxy", "services")];
    NfTables::open().is_ok_and(|mut nf_tables| {
        places
            .into_iter()
            .any(|(table, chain)| nf_tables.has_chain(family, table, chain).unwrap_or(false))
    })
}

async fn traces(family: Family, tools: &[Tools]) -> Traces {
    let legacy = tools.iter().find(|tools| tools.flavour == Flavour::Legacy);
    Traces {
        nft: nft_traces(family),
        legacy: match legacy {
            Some(tools) => legacy_traces(tools).await,
            None => Vec::new(),
        },
    }
}

/// Asks the kernel itself: iptables-nft would list tens of thousands of rules for it.
fn nft_traces(family: Family) -> Vec<Hint> {
    let Ok(mut nf_tables) = NfTables::open() else {
        return Vec::new();
    };
    Hint::ALL
        .into_iter()
        .filter(|hint| {
            nf_tables
                .has_chain(family, hint.table(), hint.chain())
                .unwrap_or(false)
        })
        .collect()
}

async fn legacy_traces(tools: &Tools) -> Vec<Hint> {
    let mut found = Vec::new();
    for table in ["nat", "mangle"] {
        if !tools.may_have_table(table) {
            continue;
        }
        match tools.save(table).await {
            Ok(text) => found.extend(hints_in(table, &text)),
            Err(error) => tracing::debug!(%error, "can't look for kube-proxy's chains"),
        }
    }
    found
}

fn hints_in(table: &str, text: &str) -> Vec<Hint> {
    let chains: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .collect();
    Hint::ALL
        .into_iter()
        .filter(|hint| hint.table() == table && chains.contains(&hint.chain()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_chains_and_nothing_that_looks_like_them() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n\
                    -A PREROUTING -m comment --comment \":KUBE-PROXY-CANARY \" -j X\nCOMMIT\n";
        assert_eq!(hints_in("nat", text), [Hint::KubeServices]);
        assert_eq!(hints_in("mangle", text), []);
    }
}

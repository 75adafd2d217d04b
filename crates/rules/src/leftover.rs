//! What an agent left that went another way into the kernel and ended without notice.

use crate::chain_names::MASQUERADE;
use crate::error::RulesError;
use crate::gate::remove_sets;
use crate::iptables::installed::installed;
use crate::nf_tables::NfTables;
use crate::nftables::leftover::{remove_leftovers, remove_refusing};
use crate::nftables::table_name::TableName;
use crate::removal::remove_all;
use crate::{BackendKind, Family, Flavour, OwnChain};

/// Removes rules of ours from every place but the one in use. What can't be removed is
/// told in the log; it does no harm there as long as an agent runs.
pub(crate) async fn remove_all_but(
    family: Family,
    kept: BackendKind,
    kept_table: Option<TableName>,
) {
    for flavour in Flavour::BOTH {
        if kept == BackendKind::Iptables(flavour) || !may_hold_chains(family, flavour) {
            continue;
        }
        tell(
            family,
            BackendKind::Iptables(flavour),
            remove_chains(family, flavour).await,
        );
    }
    if kept == BackendKind::Nftables
        && let Err(error) = remove_sets(family)
    {
        tracing::debug!(%error, %family, "IP sets of an earlier agent are left");
    }
    // A kernel without nf_tables has nothing to be removed there.
    if NfTables::open().is_ok() {
        let tables = remove_leftovers(family, kept_table)
            .map(|leftovers| !leftovers.removed.is_empty())
            .map_err(RulesError::from);
        tell(family, BackendKind::Nftables, tables);
        // With nftables it is in use still, or was removed by whoever would use it.
        if kept != BackendKind::Nftables {
            let refusing = remove_refusing(family).map_err(RulesError::from);
            tell(family, BackendKind::Nftables, refusing);
        }
    }
}

async fn remove_chains(family: Family, flavour: Flavour) -> Result<bool, RulesError> {
    let tools = installed(family).await;
    let Some(tools) = tools.iter().find(|tools| tools.flavour == flavour) else {
        return Ok(false);
    };
    Ok(!remove_all(tools).await?.is_nothing())
}

fn tell(family: Family, kind: BackendKind, outcome: Result<bool, RulesError>) {
    match outcome {
        Ok(false) => {}
        Ok(true) => tracing::info!(%family, %kind, "removed what an earlier agent left there"),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error, %family, %kind,
            "can't remove what an earlier agent left there; `edgemesh-agent cleanup` tries again"
        ),
    }
}

/// Whether it is worth a look for chains of ours, asked of the kernel alone.
pub(crate) fn may_hold_chains(family: Family, flavour: Flavour) -> bool {
    match flavour {
        Flavour::Nft => NfTables::open().is_ok_and(|mut nf_tables| {
            OwnChain::BOTH
                .map(OwnChain::name)
                .into_iter()
                .chain([MASQUERADE])
                .any(|chain| nf_tables.has_chain(family, "nat", chain).unwrap_or(true))
        }),
        Flavour::Legacy => std::fs::read_to_string(family.legacy_table_names())
            .is_ok_and(|names| names.lines().any(|name| name == "nat")),
    }
}

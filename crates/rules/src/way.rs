//! The ways into the kernel, and which of them kube-proxy's mode asks for.

use std::sync::Arc;

use crate::backend_choice::{Signs, choose};
use crate::error::RulesError;
use crate::iptables::fail_open::FailOpen;
use crate::nf_tables::NfTables;
use crate::nftables::backend::NftablesBackend;
use crate::nftables::table_name::TableName;
use crate::pulse::SignsOfLife;
use crate::{
    Applied, BackendChoice, BackendKind, Family, FlavourSetting, Removed, Ruleset, Verified,
};

/// A way into the kernel.
#[derive(Debug)]
pub(crate) enum Way {
    Iptables(Box<FailOpen>),
    Nftables(Box<NftablesBackend>),
}

impl Way {
    pub(crate) fn table_name(&self) -> Option<TableName> {
        match self {
            Way::Iptables(_) => None,
            Way::Nftables(nftables) => nftables.table_name(),
        }
    }

    pub(crate) async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        match self {
            Way::Iptables(iptables) => iptables.apply(wanted).await,
            Way::Nftables(nftables) => nftables.apply(wanted).await,
        }
    }

    pub(crate) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        match self {
            Way::Iptables(iptables) => iptables.verify(wanted).await,
            Way::Nftables(nftables) => nftables.verify(wanted).await,
        }
    }

    pub(crate) async fn remove(&mut self) -> Result<Removed, RulesError> {
        match self {
            Way::Iptables(iptables) => iptables.remove().await,
            Way::Nftables(nftables) => nftables.remove().await,
        }
    }
}

pub(crate) async fn open_iptables(
    family: Family,
    flavour: FlavourSetting,
    signs: &SignsOfLife,
) -> Result<(Way, BackendChoice), RulesError> {
    let iptables = FailOpen::open(family, flavour, signs.clone()).await?;
    let choice = iptables.choice().clone().into();
    Ok((Way::Iptables(Box::new(iptables)), choice))
}

pub(crate) async fn open_nftables(family: Family, signs: &SignsOfLife) -> Result<Way, RulesError> {
    let nftables = NftablesBackend::open(family, signs.clone()).await?;
    Ok(Way::Nftables(Box::new(nftables)))
}

pub(crate) async fn open_auto(
    family: Family,
    flavour: FlavourSetting,
    signs: &SignsOfLife,
) -> Result<(Way, BackendChoice), RulesError> {
    let (iptables, found) = match FailOpen::open(family, flavour, signs.clone()).await {
        Ok(iptables) => {
            let choice = iptables.choice().clone();
            (Some(iptables), Ok(choice))
        }
        Err(missing) => (None, Err(missing)),
    };
    let choice = choose(family, signs_of_kube_proxy(family), found)?;
    let way = match (choice.kind, iptables) {
        (BackendKind::Iptables(_), Some(iptables)) => Way::Iptables(Box::new(iptables)),
        (BackendKind::Iptables(_), None) | (BackendKind::Nftables, _) => {
            open_nftables(family, signs).await?
        }
    };
    Ok((way, choice))
}

/// Asks the kernel alone; where it does not answer, there are none.
pub(crate) fn signs_of_kube_proxy(family: Family) -> Signs {
    // Of kube-proxy in nftables mode (kubernetes `pkg/proxy/nftables/proxier.go`): the chain
    // that all its others are reached from. The table alone may be an empty remainder.
    const TABLE: &str = "kube-proxy";
    const CHAIN: &str = "services";
    let Ok(mut nf_tables) = NfTables::open() else {
        return Signs::default();
    };
    let mut has = |family, table, chain| {
        nf_tables
            .has_chain(family, table, chain)
            .unwrap_or_default()
    };
    Signs {
        nftables_mode: has(family, TABLE, CHAIN),
        nftables_mode_in_other: has(family.other(), TABLE, CHAIN),
        iptables_mode: has(family, "nat", crate::KUBE_SERVICES),
    }
}

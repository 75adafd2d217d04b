//! What becomes of new connections once no agent serves any more: where there is no
//! kube-proxy to fall through to, a table that outlives the agent refuses them.

use std::sync::Arc;

use super::background::in_background;
use super::nftables_error::NftablesError;
use super::refuse_table::RefuseTable;
use super::refusing_rules::SetChanges;
use super::table::Look;
use super::table_name::TableName;
use crate::iptables::probe::{has_kube_proxy_in_nf_tables, kube_services_in};
use crate::{Family, Repair, Ruleset};

/// So many looks kube-proxy's rules may be away, as while it is restarted, before the
/// table counts on their staying away.
const PATIENCE: u32 = 5;

/// Owner of one family's table that refuses.
///
/// What it holds is never what must not be refused: a portal is taken out before the agent
/// lets go of it, and put in after the agent took it. Should the kernel not have it, the
/// agent serves all the same, and the log says so.
#[derive(Debug)]
pub(super) struct Refusal {
    family: Family,
    /// None if a call was given up half-way: then it is opened anew.
    table: Option<RefuseTable>,
    kernel: Kernel,
    /// Looks in a row at which kube-proxy's rules were not to be seen.
    without_kube_proxy: u32,
    /// Whether they were in iptables-legacy at the last look there; none before the first.
    in_legacy: Option<bool>,
    told_of_failure: bool,
}

/// What is known of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kernel {
    Unknown,
    HasNone,
    Refuses(Arc<Ruleset>),
}

impl Refusal {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            table: None,
            kernel: Kernel::Unknown,
            without_kube_proxy: PATIENCE,
            in_legacy: None,
            told_of_failure: false,
        }
    }

    /// Takes out what is not wanted any more; to be called before the agent lets go of it.
    pub(super) async fn withdraw(&mut self, wanted: &Arc<Ruleset>) {
        if !self.is_needed().await {
            self.remove().await;
            return;
        }
        let outcome = match std::mem::replace(&mut self.kernel, Kernel::Unknown) {
            Kernel::HasNone => {
                self.kernel = Kernel::HasNone;
                Ok(())
            }
            Kernel::Unknown => {
                let wanted = Arc::clone(wanted);
                self.with_table(move |table| table.keep_only(&wanted)).await
            }
            Kernel::Refuses(held) => self.withdraw_from(held, wanted).await,
        };
        self.tell(outcome);
    }

    async fn withdraw_from(
        &mut self,
        held: Arc<Ruleset>,
        wanted: &Ruleset,
    ) -> Result<(), NftablesError> {
        let differing = held.portals().differing(wanted.portals());
        let gone = differing.filter(|(_, _, after)| after.is_none());
        let delete: Vec<_> = gone.map(|(frontend, _, _)| *frontend).collect();
        if delete.is_empty() {
            self.kernel = Kernel::Refuses(held);
            return Ok(());
        }
        let mut left = Ruleset::clone(&held);
        for frontend in &delete {
            left.remove(frontend);
        }
        let add = Vec::new();
        let changes = SetChanges { delete, add };
        self.with_table(move |table| table.change(&changes)).await?;
        self.kernel = Kernel::Refuses(Arc::new(left));
        Ok(())
    }

    /// Brings in all that is wanted; to be called after the agent took it.
    pub(super) async fn cover(&mut self, wanted: &Arc<Ruleset>) {
        if self.without_kube_proxy < PATIENCE {
            return;
        }
        let known = std::mem::replace(&mut self.kernel, Kernel::Unknown);
        if let Kernel::Refuses(held) = known
            && held.mark() == wanted.mark()
        {
            let changes = SetChanges::between(&held, wanted);
            let changed = self.with_table(move |table| table.change(&changes)).await;
            if changed.is_ok() {
                self.kernel = Kernel::Refuses(Arc::clone(wanted));
                return;
            }
        }
        self.make(wanted).await;
    }

    /// Finds out whether the table is as it should be, and puts right what isn't. To be
    /// called when the agent's own rules are.
    pub(super) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Option<Repair> {
        if !self.is_needed().await {
            self.remove().await;
            return None;
        }
        let Kernel::Refuses(held) = self.kernel.clone() else {
            self.make(wanted).await;
            return None;
        };
        if !Arc::ptr_eq(&held, wanted) && held != *wanted {
            self.make(wanted).await;
            return None;
        }
        let looked = self.with_table(move |table| table.look(&held)).await;
        let name = TableName::refusing(self.family).to_string();
        let repair = match looked {
            Ok(Look::Same) => None,
            Ok(Look::Gone) => Some(Repair::TableMissing(name)),
            Ok(Look::Altered) => Some(Repair::TableAltered(name)),
            Err(error) => {
                self.tell(Err(error));
                return None;
            }
        };
        if repair.is_some() {
            self.make(wanted).await;
        }
        repair
    }

    /// Looks for kube-proxy where looking takes a process.
    pub(super) async fn look_around(&mut self) {
        let seen = has_kube_proxy_in_nf_tables(self.family);
        self.in_legacy = Some(!seen && kube_services_in(self.family).await);
    }

    /// Takes the table out.
    pub(super) async fn remove(&mut self) {
        if self.kernel == Kernel::HasNone {
            return;
        }
        let outcome = self.with_table(RefuseTable::delete).await;
        self.kernel = match outcome {
            Ok(_) => Kernel::HasNone,
            Err(_) => Kernel::Unknown,
        };
        self.tell(outcome.map(|_| ()));
    }

    /// Somebody else may have changed anything.
    pub(super) fn forget(&mut self) {
        self.kernel = Kernel::Unknown;
    }

    async fn make(&mut self, wanted: &Arc<Ruleset>) {
        let rules = Arc::clone(wanted);
        let made = self.with_table(move |table| table.make(&rules)).await;
        if made.is_ok() {
            self.kernel = Kernel::Refuses(Arc::clone(wanted));
            self.told_of_failure = false;
        }
        self.tell(made);
    }

    /// Whether nobody else is there to serve what the agent doesn't.
    async fn is_needed(&mut self) -> bool {
        if self.in_legacy.is_none() {
            self.look_around().await;
        }
        let seen = self.in_legacy == Some(true) || has_kube_proxy_in_nf_tables(self.family);
        self.without_kube_proxy = match seen {
            true => 0,
            false => self.without_kube_proxy.saturating_add(1),
        };
        self.without_kube_proxy >= PATIENCE
    }

    fn tell(&mut self, outcome: Result<(), NftablesError>) {
        let Err(error) = outcome else {
            return;
        };
        if !std::mem::replace(&mut self.told_of_failure, true) {
            tracing::warn!(
                %error, family = %self.family,
                "can't keep the table by which ClusterIPs are refused, there being no kube-proxy, \
                 when the agent dies without notice (it takes the kernel modules nft_reject_ipv4 \
                 and nft_reject_ipv6): new connections may be left hanging then"
            );
        }
    }

    /// The kernel may let a transaction wait for somebody else's: other tasks shall go on.
    async fn with_table<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut RefuseTable) -> Result<T, NftablesError> + Send + 'static,
    ) -> Result<T, NftablesError> {
        let family = self.family;
        let table = self.table.take();
        let (table, outcome) = in_background(move || {
            let mut table = table.map_or_else(|| RefuseTable::open(family), Ok)?;
            let outcome = job(&mut table);
            Ok((table, outcome))
        })
        .await?;
        self.table = Some(table);
        outcome
    }
}

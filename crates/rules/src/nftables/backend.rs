//! One family's rules by way of nftables: brings them there, keeps them there, takes them
//! out.

use std::sync::Arc;
use std::time::Instant;

use super::background::in_background;
use super::change::between;
use super::kernel_support::KernelSupport;
use super::nftables_error::NftablesError;
use super::refusal::Refusal;
use super::sign_of_life::SignOfLife;
use super::table::{Look, OwnTable};
use super::table_name::TableName;
use crate::error::RulesError;
use crate::outcome::{Applied, Change, Verified};
use crate::pulse::SignsOfLife;
use crate::{Family, Removed, Repair, Ruleset};

/// Owner of one family's table.
#[derive(Debug)]
pub(crate) struct NftablesBackend {
    family: Family,
    /// None only if a call was given up half-way: then it is opened anew.
    table: Option<OwnTable>,
    support: Arc<KernelSupport>,
    known: Option<Arc<Ruleset>>,
    signs: SignsOfLife,
    told_of_lost_signs: bool,
    refusal: Refusal,
}

impl NftablesBackend {
    /// Finds out whether this kernel can do it, and makes ready; changes nothing.
    pub(crate) async fn open(family: Family, signs: SignsOfLife) -> Result<Self, NftablesError> {
        let table = in_background(move || OwnTable::open(family)).await?;
        if !table.is_owned() {
            tracing::info!(
                %family,
                "this kernel does not let a process own a table (Linux 5.12 and later do): if \
                 the agent ends without notice, its table lets everything pass a few seconds \
                 later, and stays until the next start or `edgemesh-agent cleanup`"
            );
        }
        let support = Arc::clone(table.support());
        if let Some(reason) = support.no_affinity() {
            tracing::info!(
                %family, %reason,
                "this kernel does not send connections to endpoints by all of our rules: the \
                 agent serves instead"
            );
        }
        Ok(Self {
            family,
            support,
            table: Some(table),
            known: None,
            signs,
            told_of_lost_signs: false,
            refusal: Refusal::new(family),
        })
    }

    /// What of the kernel path this kernel can do.
    pub(crate) fn support(&self) -> &KernelSupport {
        &self.support
    }

    /// Brings the kernel to hold `wanted`, in one atomic step.
    pub(crate) async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        self.apply_within(&self.support.within(wanted)).await
    }

    async fn apply_within(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        self.refusal.withdraw(wanted).await;
        let applied = self.bring_in(wanted).await?;
        self.refusal.cover(wanted).await;
        Ok(applied)
    }

    async fn bring_in(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        let started = Instant::now();
        if let Some(known) = self.known.take()
            && let Some(changes) = between(&known, wanted)
        {
            let rules = Arc::clone(wanted);
            let changed = self
                .with_table(move |table| table.change(&changes, &rules))
                .await?;
            match changed {
                Ok(lines) => {
                    self.known = Some(Arc::clone(wanted));
                    let change = match lines {
                        0 => Change::None,
                        _ => Change::Incremental,
                    };
                    return Ok(applied(change, lines, started, Vec::new()));
                }
                Err(error) => {
                    tracing::warn!(%error, "making the table anew");
                    let repairs = vec![Repair::TableAltered(self.shown_name())];
                    let lines = self.make(wanted).await?;
                    return Ok(applied(Change::Rewritten, lines, started, repairs));
                }
            }
        }
        let lines = self.make(wanted).await?;
        Ok(applied(Change::Rewritten, lines, started, Vec::new()))
    }

    /// Finds out whether the kernel still holds `wanted`, and puts right what it doesn't.
    pub(crate) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        let wanted = &self.support.within(wanted);
        let started = Instant::now();
        let mut repairs = Vec::new();
        let known = self.known.clone().unwrap_or_else(|| Arc::clone(wanted));
        let name = self.shown_name();
        match self.with_table(move |table| table.look(&known)).await?? {
            Look::Same => {}
            Look::Gone => repairs.push(Repair::TableMissing(name)),
            Look::Altered => repairs.push(Repair::TableAltered(name)),
        }
        let read_back = !repairs.is_empty();
        if read_back {
            self.make(wanted).await?;
        } else if self.known.as_ref() != Some(wanted) {
            repairs.extend(self.apply_within(wanted).await?.repairs);
        }
        if self.keep_open(wanted).await? {
            repairs.push(Repair::GateClosed);
        }
        repairs.extend(self.refusal.verify(wanted).await);
        Ok(Verified {
            repairs,
            read_back,
            took: started.elapsed(),
        })
    }

    /// Looks again who else is there, where that takes more than a question to the kernel.
    pub(crate) async fn reconsider(&mut self) {
        self.refusal.look_around().await;
    }

    /// Takes the tables out. That which refuses goes first: whoever connects in this moment is
    /// not refused, but tried again by the kernel a second later, when the next agent may be
    /// there.
    pub(crate) async fn remove(&mut self) -> Result<Removed, RulesError> {
        self.signs.go_by_packets(None);
        self.refusal.remove().await;
        let portals = self.known.take().map_or(0, |known| known.portals().len());
        let there = self.with_table(OwnTable::empty).await??;
        Ok(Removed {
            rules: if there { portals } else { 0 },
            ..Removed::default()
        })
    }

    /// Somebody else may have changed anything: the next call makes the table anew.
    pub(crate) fn forget(&mut self) {
        self.known = None;
        self.refusal.forget();
    }

    /// Takes out the table if it is still the one that was made here. That which refuses is
    /// the next agent's now.
    pub(crate) async fn let_go(&mut self) -> Result<(), RulesError> {
        self.signs.go_by_packets(None);
        self.known = None;
        self.with_table(OwnTable::let_go).await??;
        Ok(())
    }

    async fn make(&mut self, wanted: &Arc<Ruleset>) -> Result<usize, RulesError> {
        self.known = None;
        let rules = Arc::clone(wanted);
        let open = self.signs.may_open();
        let lines = self
            .with_table(move |table| table.make(&rules, open))
            .await??;
        self.known = Some(Arc::clone(wanted));
        // The mark of the packets is one of the things that a new table may be made for.
        self.take_packets(wanted);
        Ok(lines)
    }

    /// Sees to it that signs of life arrive; tells whether the gate was closed. A gate that is
    /// let close is left alone.
    async fn keep_open(&mut self, wanted: &Ruleset) -> Result<bool, RulesError> {
        if !self.signs.has_packets() {
            self.take_packets(wanted);
        }
        if !self.signs.may_open() {
            return Ok(false);
        }
        let kept = self.with_table(OwnTable::keep_open).await??;
        if kept.renewed && !std::mem::replace(&mut self.told_of_lost_signs, true) {
            tracing::warn!(
                family = %self.family,
                "signs of life come late or don't come through on lo (is something dropping \
                 them, or exempting lo from connection tracking?); renewing the gate otherwise"
            );
        }
        Ok(kept.was_closed)
    }

    /// From now on the table's gate goes by packets.
    fn take_packets(&mut self, wanted: &Ruleset) {
        let packets = SignOfLife::prepare(self.family, wanted.mark())
            .inspect_err(|error| {
                tracing::warn!(
                    %error, family = %self.family,
                    "can't show signs of life by packets; renewing the gate otherwise"
                );
            })
            .ok();
        if let Some(packets) = &packets
            && self.signs.may_open()
        {
            // A transaction that took long may have opened a gate that is closed again.
            packets.give();
        }
        self.signs.go_by_packets(packets);
    }

    /// The table that was made.
    pub(crate) fn table_name(&self) -> Option<TableName> {
        self.table.as_ref().and_then(OwnTable::name)
    }

    fn shown_name(&self) -> String {
        let [usual, _] = TableName::all(self.family);
        self.table_name().unwrap_or(usual).to_string()
    }

    /// The kernel may let a transaction wait for somebody else's: other tasks shall go on.
    async fn with_table<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut OwnTable) -> T + Send + 'static,
    ) -> Result<T, NftablesError> {
        let family = self.family;
        let table = self.table.take();
        let (table, outcome) = in_background(move || {
            let mut table = table.map_or_else(|| OwnTable::open(family), Ok)?;
            let outcome = job(&mut table);
            Ok((table, outcome))
        })
        .await?;
        self.table = Some(table);
        Ok(outcome)
    }
}

fn applied(change: Change, lines: usize, started: Instant, repairs: Vec<Repair>) -> Applied {
    Applied {
        change,
        lines,
        took: started.elapsed(),
        repairs,
    }
}

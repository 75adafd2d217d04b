//! The rules by way of iptables, with the gate before them.

use std::sync::Arc;

use crate::backend::{Applied, Verified};
use crate::error::RulesError;
use crate::gate::{GateSets, remove_sets};
use crate::iptables::backend::IptablesBackend;
use crate::{Family, FlavourChoice, FlavourSetting, Gate, NoFlavour, Removed, Ruleset};

/// One family's rules, and the gate that closes when the agent dies.
#[derive(Debug)]
pub(crate) struct FailOpen {
    backend: IptablesBackend,
    sets: Sets,
    /// What becomes of a gate that an agent before this one left.
    found_gate: FoundGate,
    /// The rules as they were wanted last, without the gate and with it.
    gated: Option<(Arc<Ruleset>, Arc<Ruleset>)>,
    /// Looks in a row at which kube-proxy's rules were not to be seen.
    without_kube_proxy: u32,
}

/// So many looks kube-proxy's rules may be away, as while it is restarted, before the gate
/// counts on their staying away.
const PATIENCE: u32 = 5;

/// A gate that is there before this process has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundGate {
    /// Whoever served behind it is gone.
    Close,
    /// Somebody serves behind it until we do.
    Leave,
}

#[derive(Debug)]
enum Sets {
    NotYet,
    There(GateSets),
    Impossible,
}

impl FailOpen {
    /// See [`IptablesBackend::open`].
    pub(crate) async fn open(family: Family, setting: FlavourSetting) -> Result<Self, NoFlavour> {
        Ok(Self {
            backend: IptablesBackend::open(family, setting).await?,
            sets: Sets::NotYet,
            found_gate: FoundGate::Close,
            gated: None,
            without_kube_proxy: PATIENCE,
        })
    }

    /// See [`Backend::succeed`](crate::Backend::succeed).
    pub(crate) fn succeed(&mut self) {
        self.found_gate = FoundGate::Leave;
    }

    /// See [`Backend::forget`](crate::Backend::forget).
    pub(crate) fn forget(&mut self) {
        self.backend.forget();
        self.sets = Sets::NotYet;
        self.gated = None;
        self.found_gate = FoundGate::Leave;
    }

    /// See [`IptablesBackend::choice`].
    pub(crate) fn choice(&self) -> &FlavourChoice {
        self.backend.choice()
    }

    /// See [`IptablesBackend::has_made`].
    pub(crate) fn has_made(&self, generation: u32) -> bool {
        self.backend.has_made(generation)
    }

    /// See [`IptablesBackend::try_out`].
    pub(crate) async fn try_out(&self) -> Result<(), RulesError> {
        self.backend.try_out().await
    }

    /// See [`IptablesBackend::apply`]. The gate is open afterwards: whoever calls this
    /// serves what it leads to.
    pub(crate) async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        self.make_sets();
        self.backend.look_around().await?;
        let gated = self.gated(wanted);
        let applied = match self.backend.apply(&gated).await {
            Err(error) if gated.gate() != Gate::None => {
                let without = self.do_without(&error, wanted);
                self.backend.apply(&without).await?
            }
            applied => applied?,
        };
        self.open_gate();
        // Reading the rules may have shown who else is there.
        let better = self.gated(wanted);
        if better != gated {
            self.backend.apply(&better).await?;
        }
        Ok(applied)
    }

    /// See [`IptablesBackend::verify`].
    pub(crate) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        let gated = self.gated(wanted);
        let changed = self.backend.knows_other_than(&gated);
        let mut verified = self.backend.verify(&gated).await?;
        if changed {
            // Not undone by anybody: kube-proxy came or went, and the gate follows.
            verified.repairs.clear();
        }
        Ok(verified)
    }

    /// See [`IptablesBackend::glance`].
    pub(crate) async fn glance(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        match self.gated.clone() {
            Some((plain, gated)) if plain == *wanted => self.backend.glance(&gated).await,
            Some(_) | None => self.verify(wanted).await,
        }
    }

    /// See [`IptablesBackend::reconsider`].
    pub(crate) async fn reconsider(
        &mut self,
        wanted: &Arc<Ruleset>,
    ) -> Result<Option<FlavourChoice>, RulesError> {
        let gated = self.gated(wanted);
        let moved = self.backend.reconsider(&gated).await?;
        if moved.is_some() {
            let gated = self.gated(wanted);
            self.backend.apply(&gated).await?;
        }
        Ok(moved)
    }

    /// See [`IptablesBackend::remove`]; the sets go, too.
    pub(crate) async fn remove(&mut self) -> Result<Removed, RulesError> {
        let removed = self.backend.remove().await?;
        self.sets = Sets::NotYet;
        self.gated = None;
        if let Err(error) = remove_sets(self.backend.family()) {
            tracing::debug!(%error, "IP sets are left: a rule asks them still");
        }
        Ok(removed)
    }

    fn make_sets(&mut self) {
        if !matches!(self.sets, Sets::NotYet) {
            return;
        }
        let family = self.backend.family();
        let made = GateSets::create(family).and_then(|mut sets| {
            match self.found_gate {
                FoundGate::Close => sets.close()?,
                FoundGate::Leave => {}
            }
            Ok(sets)
        });
        self.sets = match made {
            Ok(sets) => Sets::There(sets),
            Err(error) => {
                tracing::warn!(
                    %family, %error,
                    "can't make the IP sets by which new connections fall through to kube-proxy \
                     when the agent dies without notice (it takes the kernel modules ip_set, \
                     ip_set_hash_net and ip_set_hash_ipport; modprobe them on the node, and look \
                     with `ipset list` for sets of the names EDGEMESH-*): until the agent is \
                     started again they will be refused"
                );
                Sets::Impossible
            }
        };
    }

    /// The rules with the gate that suits who else is there.
    fn gated(&mut self, wanted: &Arc<Ruleset>) -> Arc<Ruleset> {
        self.without_kube_proxy = match self.backend.sees_kube_proxy() {
            true => 0,
            false => self.without_kube_proxy.saturating_add(1),
        };
        let gate = match &self.sets {
            Sets::NotYet | Sets::Impossible => Gate::None,
            Sets::There(_) if self.without_kube_proxy < PATIENCE => Gate::KubeProxy,
            Sets::There(_) => Gate::Refuse,
        };
        if let Some((plain, gated)) = &self.gated
            && plain == wanted
            && gated.gate() == gate
        {
            return Arc::clone(gated);
        }
        if let (Sets::There(sets), Gate::Refuse) = (&mut self.sets, gate)
            && let Err(error) = sets.hold(wanted)
        {
            tracing::warn!(
                %error, family = %self.backend.family(),
                "can't tell the kernel all portals: should the agent die, some will time out \
                 instead of being refused"
            );
        }
        let gated = Arc::new(Ruleset::clone(wanted).gated(gate));
        self.gated = Some((Arc::clone(wanted), Arc::clone(&gated)));
        gated
    }

    /// iptables may lack what the kernel has.
    fn do_without(&mut self, error: &RulesError, wanted: &Arc<Ruleset>) -> Arc<Ruleset> {
        tracing::warn!(
            %error, family = %self.backend.family(),
            "trying without the gate by which new connections fall through to kube-proxy when \
             the agent dies without notice"
        );
        self.sets = Sets::Impossible;
        self.gated(wanted)
    }

    fn open_gate(&mut self) {
        if let Sets::There(sets) = &mut self.sets
            && let Err(error) = sets.open()
        {
            tracing::warn!(%error, family = %self.backend.family(), "the gate stays closed");
        }
    }
}

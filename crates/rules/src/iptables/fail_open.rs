//! The rules by way of iptables, with the gate before them, made of what the kernel has.

use std::sync::Arc;

use crate::error::RulesError;
use crate::gate::{GateSets, remove_sets};
use crate::iptables::backend::IptablesBackend;
use crate::iptables::extensions::Lacking;
use crate::iptables::trial::Trial;
use crate::outcome::{Applied, Verified};
use crate::pulse::SignsOfLife;
use crate::{
    Family, FlavourChoice, FlavourSetting, Gate, NoFlavour, PortalLayout, Removed, Repair, Ruleset,
};

/// One family's rules, and the gate that closes when the agent dies.
#[derive(Debug)]
pub(crate) struct FailOpen {
    backend: IptablesBackend,
    sets: Sets,
    signs: SignsOfLife,
    trial: Trial,
    /// What becomes of a gate that an agent before this one left.
    found_gate: FoundGate,
    /// The rules as they were wanted last, without the gate and with it.
    gated: Option<(Arc<Ruleset>, Arc<Ruleset>)>,
    layout: PortalLayout,
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
    pub(crate) async fn open(
        family: Family,
        setting: FlavourSetting,
        signs: SignsOfLife,
    ) -> Result<Self, NoFlavour> {
        Ok(Self {
            backend: IptablesBackend::open(family, setting).await?,
            sets: Sets::NotYet,
            signs,
            trial: Trial::default(),
            found_gate: FoundGate::Close,
            gated: None,
            layout: PortalLayout::default(),
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

    /// See [`IptablesBackend::apply`]. The gate is open afterwards, for whoever calls this
    /// serves what it leads to, unless it is let close.
    pub(crate) async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        self.make_sets();
        self.backend.look_around().await?;
        self.try_kernel_path(wanted).await;
        let gated = self.gated(wanted);
        // Before their rules go: nobody may take them for portals whose rules are still to come.
        self.forget_other_portals(wanted);
        let applied = self.apply_what_is_taken(gated.clone(), wanted).await?;
        self.open_gate();
        // Reading the rules may have shown who else is there.
        let better = self.gated(wanted);
        if better != gated {
            self.backend.apply(&better).await?;
        }
        Ok(applied)
    }

    /// Brings in the rules, with less of what iptables or the kernel may lack if they are
    /// refused.
    async fn apply_what_is_taken(
        &mut self,
        mut gated: Arc<Ruleset>,
        wanted: &Arc<Ruleset>,
    ) -> Result<Applied, RulesError> {
        loop {
            let error = match self.backend.apply(&gated).await {
                Ok(applied) => return Ok(applied),
                Err(error) => error,
            };
            if gated.extensions().kernel_path && !error.is_retryable() {
                tracing::warn!(
                    %error, family = %self.backend.family(),
                    "trying without serving portals in the kernel"
                );
                self.trial.give_up();
            } else if gated.gate() != Gate::None {
                tracing::warn!(
                    %error, family = %self.backend.family(),
                    "trying without the gate by which new connections fall through to \
                     kube-proxy when the agent dies without notice"
                );
                self.sets = Sets::Impossible;
            } else {
                return Err(error);
            }
            gated = self.gated(wanted);
        }
    }

    /// See [`Backend::no_kernel_path`](crate::Backend::no_kernel_path).
    pub(crate) fn no_kernel_path(&self) -> Option<Arc<str>> {
        let (_, gated) = self.gated.as_ref()?;
        if gated.extensions().portal_set {
            self.trial.no_kernel_path()
        } else {
            Some(Lacking::PortalSet.reason().into())
        }
    }

    /// See [`Backend::no_affinity`](crate::Backend::no_affinity).
    pub(crate) fn no_affinity(&self) -> Option<Arc<str>> {
        self.trial.no_affinity()
    }

    /// See [`IptablesBackend::verify`].
    pub(crate) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        let whole = match &mut self.sets {
            Sets::There(sets) => sets.are_portals_whole(),
            Sets::NotYet | Sets::Impossible => true,
        };
        if !whole {
            self.gated = None;
        }
        let gated = self.gated(wanted);
        let changed = self.backend.knows_other_than(&gated);
        let mut verified = self.backend.verify(&gated).await?;
        if changed {
            // Not undone by anybody: kube-proxy came or went, and the gate follows.
            verified.repairs.clear();
        }
        if !whole {
            verified.repairs.push(Repair::PortalSet);
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
            self.trial.begin_anew();
            self.try_kernel_path(wanted).await;
            let gated = self.gated(wanted);
            self.backend.apply(&gated).await?;
        }
        Ok(moved)
    }

    /// See [`IptablesBackend::remove`]; the sets go, too.
    pub(crate) async fn remove(&mut self) -> Result<Removed, RulesError> {
        let removed = self.backend.remove().await?;
        self.signs.go_by_ip_set(false);
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
                     started again they will be refused; and no portal is served in the kernel"
                );
                Sets::Impossible
            }
        };
    }

    async fn try_kernel_path(&mut self, wanted: &Ruleset) {
        if let Sets::There(_) = &self.sets {
            self.trial.begin(&mut self.backend, wanted).await;
        }
    }

    /// The rules with the gate that suits who else is there, made of what the kernel has. Their
    /// portals are in the set by then.
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
        let known = self.gated.as_ref().filter(|(plain, _)| plain == wanted);
        let portal_set = match known {
            Some((_, gated)) if gate != Gate::None => gated.extensions().portal_set,
            Some(_) | None => self.add_portals(wanted),
        };
        let extensions = self
            .trial
            .extensions(portal_set, self.backend.has_random_fully());
        self.layout = self.layout.after(wanted.portals().len());
        if let Some((plain, gated)) = &self.gated
            && plain == wanted
            && (gated.gate(), gated.extensions()) == (gate, extensions)
        {
            return Arc::clone(gated);
        }
        let gated = Ruleset::clone(wanted)
            .gated(gate)
            .with_extensions(extensions)
            .laid_out(self.layout);
        let gated = Arc::new(gated);
        self.gated = Some((Arc::clone(wanted), Arc::clone(&gated)));
        gated
    }

    /// Brings the portals into their set; whether all are in it.
    fn add_portals(&mut self, wanted: &Ruleset) -> bool {
        let Sets::There(sets) = &mut self.sets else {
            return false;
        };
        match sets.add_portals(wanted) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    %error, family = %self.backend.family(),
                    "can't tell the kernel all portals: every packet has to go through all \
                     rules, no portal is served in the kernel, and should the agent die where \
                     there is no kube-proxy, some connections will time out instead of being \
                     refused"
                );
                false
            }
        }
    }

    fn forget_other_portals(&mut self, wanted: &Ruleset) {
        if let Sets::There(sets) = &mut self.sets
            && let Err(error) = sets.keep_portals(wanted)
        {
            tracing::debug!(%error, "the set of portals will be made anew");
        }
    }

    fn open_gate(&mut self) {
        let Sets::There(sets) = &mut self.sets else {
            return;
        };
        self.signs.go_by_ip_set(true);
        if self.signs.may_open()
            && let Err(error) = sets.open()
        {
            tracing::warn!(%error, family = %self.backend.family(), "the gate stays closed");
        }
    }
}

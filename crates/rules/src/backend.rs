//! One family's rules in the kernel: brings them there, keeps them there, takes them out,
//! by whichever way kube-proxy's mode asks for.

use std::sync::Arc;

use crate::error::RulesError;
use crate::iptables::probe::kube_services_in;
use crate::leftover::remove_all_but;
use crate::pulse::SignsOfLife;
use crate::way::{Way, open_auto, open_iptables, open_nftables, signs_of_kube_proxy};
use crate::{
    Applied, BackendChoice, BackendKind, BackendSetting, Family, FlavourSetting, Pulse, Removed,
    Ruleset, Switched, Verified,
};

/// Owner of one family's rules. It expects to be the only one on the node.
///
/// It remembers what it brought into the kernel, so that an added Service costs one small
/// transaction whatever the number of others; [`verify`](Self::verify) finds out whether
/// that is still there. To be used within a tokio runtime with time.
#[derive(Debug)]
pub struct Backend {
    family: Family,
    setting: BackendSetting,
    way: Way,
    /// What the gates of all ways go by.
    signs: SignsOfLife,
    choice: BackendChoice,
    /// A way that was left and still has to be emptied.
    left: Option<Way>,
    /// Whether there may still be rules of an agent that came before and went another way.
    leftovers: bool,
    /// Whether kube-proxy runs in nftables mode although the operator insists on iptables.
    beside_nftables_mode: bool,
}

/// Added to why iptables is used, where that may not be enough.
const BESIDE_NFTABLES_MODE: &str = "; but kube-proxy runs in nftables mode, and whose rules come \
                                    first depends on whose chains were made last";

impl Backend {
    /// Chooses the way and makes ready; changes nothing.
    ///
    /// # Errors
    ///
    /// When the programs for it are not installed, or the kernel has no nf_tables where
    /// nftables was chosen.
    pub async fn open(family: Family, setting: BackendSetting) -> Result<Self, RulesError> {
        let signs = SignsOfLife::default();
        let (way, choice) = match setting {
            BackendSetting::Auto(flavour) => open_auto(family, flavour, &signs).await?,
            BackendSetting::Iptables(flavour) => open_iptables(family, flavour, &signs).await?,
            BackendSetting::Nftables => {
                let choice = BackendChoice {
                    kind: BackendKind::Nftables,
                    reason: "the configuration says so".to_owned(),
                };
                (open_nftables(family, &signs).await?, choice)
            }
        };
        let mut backend = Self {
            family,
            setting,
            way,
            signs,
            choice,
            left: None,
            leftovers: true,
            beside_nftables_mode: false,
        };
        backend.mind_nftables_mode();
        Ok(backend)
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The way in use, and why.
    #[must_use]
    pub fn choice(&self) -> &BackendChoice {
        &self.choice
    }

    /// Who keeps the gates of its rules open, from now until this backend is gone.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse::new(self.family, &self.signs)
    }

    /// Why no portal can be served by the kernel on this host, as a clause. Whatever is wanted,
    /// the agent serves all of them then. None while nothing is known to stand against it: with
    /// iptables it is found out when such a portal is [applied](Self::apply) first, with
    /// nftables when the backend is opened.
    #[must_use]
    pub fn no_kernel_path(&self) -> Option<Arc<str>> {
        match &self.way {
            Way::Iptables(iptables) => iptables.no_kernel_path(),
            Way::Nftables(nftables) => nftables.support().no_path(),
        }
    }

    /// Why the kernel can't keep clients at their endpoint, as a clause. Whatever is wanted, the
    /// agent serves portals that want it then. None as with
    /// [`no_kernel_path`](Self::no_kernel_path).
    #[must_use]
    pub fn no_affinity(&self) -> Option<Arc<str>> {
        match &self.way {
            Way::Iptables(iptables) => iptables.no_affinity(),
            Way::Nftables(nftables) => nftables.support().no_affinity(),
        }
    }

    /// Brings the kernel to hold `wanted`, in one atomic step. The gate before it is open then
    /// for 2 s (iptables) or 3 s (nftables), unless signs of life are
    /// [withheld](Pulse::withhold); [`pulse`](Self::pulse) keeps it open.
    ///
    /// The first call takes over what another process of the agent left: with iptables by
    /// the difference to it, with nftables by making the table anew. What such a process
    /// left on another way is removed once the new rules stand.
    ///
    /// # Errors
    ///
    /// When a program fails twice, or the kernel refuses; it keeps what it had, and the
    /// next call finds out what that is.
    pub async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        self.expect_own_family(wanted)?;
        let applied = self.way.apply(wanted).await?;
        if std::mem::take(&mut self.leftovers) {
            remove_all_but(self.family, self.choice.kind, self.way.table_name()).await;
        }
        Ok(applied)
    }

    /// Finds out whether the kernel still holds `wanted`, and puts right what it doesn't.
    ///
    /// To be called at least every 2 s. With nftables it costs next to nothing. So it does
    /// with iptables-nft as long as nobody adds or removes rules of ours; that one of them
    /// was exchanged for another is noticed at once in a nat table of up to 2,000 lines,
    /// one call later for each 2,000 more. So is whatever happens with iptables-legacy, of
    /// which the rules alone tell.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        self.expect_own_family(wanted)?;
        self.way.verify(wanted).await
    }

    /// Does what [`verify`](Self::verify) does, as far as that takes no reading back of our
    /// rules. To be called when the [kernel told](crate::RuleEvents) of a change: with
    /// iptables-nft a jump that was overtaken is moved by a transaction of its own, at once
    /// and whatever the number of rules. With iptables-legacy, of which the kernel tells
    /// nothing, nothing is done.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub async fn glance(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        self.expect_own_family(wanted)?;
        match &mut self.way {
            Way::Iptables(iptables) => iptables.glance(wanted).await,
            // Which reads nothing back unless there is a reason.
            Way::Nftables(nftables) => nftables.verify(wanted).await,
        }
    }

    /// Whether this generation of nf_tables was made by a transaction of ours, as far as
    /// that can be told.
    #[must_use]
    pub fn has_made(&self, generation: u32) -> bool {
        match &self.way {
            Way::Iptables(iptables) => iptables.has_made(generation),
            Way::Nftables(_) => false,
        }
    }

    /// Goes the other way if kube-proxy turns out to: it may have been started after us, or
    /// again in another mode. To be called every now and then; costs little.
    ///
    /// The rules are brought in by the new way first, then taken out of the old.
    ///
    /// # Errors
    ///
    /// When a program fails or the kernel refuses. If that was about the new way, the rules
    /// are still where they were; if it was about the old, they are in both places, and the
    /// next call goes on there.
    pub async fn reconsider(
        &mut self,
        wanted: &Arc<Ruleset>,
    ) -> Result<Option<Switched>, RulesError> {
        self.expect_own_family(wanted)?;
        self.empty_left_way().await?;
        if let BackendSetting::Auto(flavour) = self.setting
            && let Some((mut way, choice)) = self.other_way(flavour).await?
        {
            way.apply(wanted).await?;
            self.left = Some(std::mem::replace(&mut self.way, way));
            self.choice = choice;
            self.empty_left_way().await?;
            return Ok(Some(self.switched()));
        }
        match &mut self.way {
            Way::Nftables(nftables) => {
                nftables.reconsider().await;
                Ok(None)
            }
            Way::Iptables(iptables) => {
                let moved = iptables.reconsider(wanted).await?;
                self.choice = iptables.choice().clone().into();
                self.mind_nftables_mode();
                Ok(moved.map(|_| self.switched()))
            }
        }
    }

    /// Whether the way in use can be gone, as far as that is seen without changing anything.
    pub(crate) async fn try_out(&self) -> Result<(), RulesError> {
        match &self.way {
            Way::Iptables(iptables) => iptables.try_out().await,
            // It was tried out when it was opened.
            Way::Nftables(_) => Ok(()),
        }
    }

    /// The agent that came before serves until the rules of this one are in: what keeps it
    /// going is left alone. To be called before the first [`apply`](Self::apply).
    pub fn succeed(&mut self) {
        match &mut self.way {
            Way::Iptables(iptables) => iptables.succeed(),
            // Each agent has a table with a gate of its own.
            Way::Nftables(_) => {}
        }
    }

    /// Counts on nothing that was brought into the kernel so far: another agent may have
    /// changed it. The next [`apply`](Self::apply) puts all right.
    pub fn forget(&mut self) {
        self.leftovers = true;
        match &mut self.way {
            Way::Iptables(iptables) => iptables.forget(),
            Way::Nftables(nftables) => nftables.forget(),
        }
    }

    /// Gives up the rules because another agent's are in force. What that one took over
    /// stays; a table that it made another for is taken out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn let_go(mut self) -> Result<(), RulesError> {
        for way in [Some(self.way), self.left.take()].into_iter().flatten() {
            match way {
                Way::Iptables(_) => {}
                Way::Nftables(mut nftables) => nftables.let_go().await?,
            }
        }
        Ok(())
    }

    /// Takes out all that is ours, by the way in use. Fine when nothing is there.
    ///
    /// # Errors
    ///
    /// When a program fails, or the kernel refuses.
    pub async fn remove(&mut self) -> Result<Removed, RulesError> {
        self.empty_left_way().await?;
        self.way.remove().await
    }

    /// The way that kube-proxy's mode asks for, if that is not the one in use.
    async fn other_way(
        &mut self,
        flavour: FlavourSetting,
    ) -> Result<Option<(Way, BackendChoice)>, RulesError> {
        let nftables_mode = signs_of_kube_proxy(self.family).nftables_mode_seen_in(self.family);
        match (self.choice.kind, nftables_mode) {
            (BackendKind::Iptables(_), Some(_)) => {
                Ok(Some(open_auto(self.family, flavour, &self.signs).await?))
            }
            // Our table stands before every mode's rules: without a sign of another one
            // there is no reason to move.
            (BackendKind::Nftables, None) if kube_services_in(self.family).await => {
                match open_auto(self.family, flavour, &self.signs).await? {
                    (Way::Nftables(_), _) => Ok(None),
                    iptables @ (Way::Iptables(_), _) => Ok(Some(iptables)),
                }
            }
            (BackendKind::Iptables(_) | BackendKind::Nftables, _) => Ok(None),
        }
    }

    async fn empty_left_way(&mut self) -> Result<(), RulesError> {
        if let Some(left) = &mut self.left {
            left.remove().await?;
            self.left = None;
        }
        Ok(())
    }

    /// Warns when kube-proxy turns out to run in nftables mode beside the iptables that the
    /// operator insists on, which decide at the same priority; and says so with the choice.
    fn mind_nftables_mode(&mut self) {
        let BackendSetting::Iptables(_) = self.setting else {
            return;
        };
        let family = self.family;
        let now = signs_of_kube_proxy(family).nftables_mode;
        match (std::mem::replace(&mut self.beside_nftables_mode, now), now) {
            (false, true) => tracing::warn!(
                %family,
                "the configuration says iptables, but kube-proxy runs in nftables mode: whose \
                 rules come first depends on whose chains were made last; set \
                 modules.edgeProxy.backend to auto or nftables"
            ),
            (true, false) => {
                tracing::info!(%family, "kube-proxy does not run in nftables mode any more");
            }
            (false, false) | (true, true) => {}
        }
        if now {
            self.choice.reason += BESIDE_NFTABLES_MODE;
        }
    }

    fn switched(&self) -> Switched {
        Switched {
            choice: self.choice.clone(),
        }
    }

    fn expect_own_family(&self, wanted: &Ruleset) -> Result<(), RulesError> {
        let (given, own) = (wanted.family(), self.family);
        if given == own {
            Ok(())
        } else {
            Err(RulesError::OtherFamily { given, own })
        }
    }
}

//! One family's rules by way of iptables: brings them there, keeps them there, takes them
//! out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::chain_names::SERVICE_PREFIX;
use crate::error::RulesError;
use crate::iptables::changes::Difference;
use crate::iptables::difference::{Means, between};
use crate::iptables::installed::Tools;
use crate::iptables::last_read::{LastRead, difference_to};
use crate::iptables::parse::Table;
use crate::iptables::probe::{has_kube_proxy_in_nf_tables, probe, probe_again};
use crate::iptables::transaction::{RULES_PER_STEP, Transaction};
use crate::outcome::{Applied, Change, Verified};
use crate::removal::{Removed, remove_all};
use crate::unchanged::{Glance, Look, Watch};
use crate::{
    Family, Flavour, FlavourChoice, FlavourSetting, KUBE_SERVICES, NoFlavour, Repair, Ruleset,
    ToolError,
};

/// How often the jumps are looked at while the rules are read.
const GLANCE_EVERY: Duration = Duration::from_millis(10);

/// Owner of one family's rules. It expects to be the only one on the node.
///
/// It remembers what it brought into the kernel, so that an added Service costs one small
/// restore whatever the number of others; [`verify`](Self::verify) finds out whether that
/// is still there.
#[derive(Debug)]
pub(crate) struct IptablesBackend {
    tools: Tools,
    choice: FlavourChoice,
    /// The other flavour, where it is not the operator who decides.
    alternative: Option<Tools>,
    watch: Watch,
    known: Option<Arc<Ruleset>>,
    last_read: LastRead,
    rules_per_step: Option<usize>,
    /// A flavour that was left and still has to be emptied.
    left: Option<Tools>,
}

impl IptablesBackend {
    /// Chooses the flavour and makes ready; changes nothing.
    ///
    /// # Errors
    ///
    /// When the programs for it are not installed.
    pub(crate) async fn open(family: Family, setting: FlavourSetting) -> Result<Self, NoFlavour> {
        let probed = probe(family, setting).await?;
        Ok(Self::new(probed.tools, probed.choice, probed.alternative))
    }

    fn new(tools: Tools, choice: FlavourChoice, alternative: Option<Tools>) -> Self {
        Self {
            watch: Watch::of(&tools),
            tools,
            choice,
            alternative,
            known: None,
            last_read: LastRead::default(),
            rules_per_step: None,
            left: None,
        }
    }

    /// The family.
    pub(crate) fn family(&self) -> Family {
        self.tools.family
    }

    /// The flavour in use, and why.
    pub(crate) fn choice(&self) -> &FlavourChoice {
        &self.choice
    }

    /// Brings the kernel to hold `wanted`, in one atomic step.
    ///
    /// The first call reads back what is there and takes it over, also what another
    /// process of the agent left.
    ///
    /// # Errors
    ///
    /// When a program fails, twice; the kernel keeps what it had, and the next call reads
    /// back what that is.
    pub(crate) async fn apply(&mut self, wanted: &Arc<Ruleset>) -> Result<Applied, RulesError> {
        let started = Instant::now();
        self.expect_own_family(wanted)?;
        let (look, moved) = self.look_and_move_jumps();
        if let Some(known) = self.known.take().filter(|_| look != Look::Changed) {
            let transaction = between(&known, wanted);
            match self.commit(&transaction).await {
                Ok(()) => {
                    self.known = Some(Arc::clone(wanted));
                    return Ok(Applied {
                        change: match transaction.lines() {
                            0 => Change::None,
                            _ => Change::Incremental,
                        },
                        lines: transaction.lines(),
                        took: started.elapsed(),
                        repairs: moved,
                    });
                }
                Err(error) => tracing::warn!(
                    %error,
                    "can't change the rules as they were known to be; reading them back"
                ),
            }
        }
        let difference = self.set_right(wanted).await?;
        Ok(Applied {
            change: match difference.transaction.lines() {
                0 => Change::None,
                _ => Change::ReadBack,
            },
            lines: difference.transaction.lines(),
            took: started.elapsed(),
            repairs: difference.repairs,
        })
    }

    /// Finds out whether the kernel still holds `wanted`, and puts right what it doesn't.
    ///
    /// To be called every 2 s or so. With iptables-nft it costs next to nothing as long as
    /// nobody adds or removes rules of ours. That one of them was exchanged for another is
    /// noticed at once in a nat table of up to 2,000 lines, one call later for each 2,000
    /// more. So is whatever happens with iptables-legacy, of which the rules alone tell.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub(crate) async fn verify(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        let started = Instant::now();
        self.expect_own_family(wanted)?;
        if !self.watch.can_tell()
            && self.known.as_ref() == Some(wanted)
            && !self.last_read.is_overdue()
        {
            return Ok(Verified {
                repairs: Vec::new(),
                read_back: false,
                took: started.elapsed(),
            });
        }
        let (look, mut repairs) = self.look_and_move_jumps();
        if self.known.as_ref() == Some(wanted) && look == Look::Same {
            let read_back = self.watch.is_overdue(self.last_read.lines);
            let right = if read_back {
                let (moved, right) = self.survey(wanted).await?;
                repairs.extend(moved);
                right
            } else {
                true
            };
            if !right {
                repairs.extend(self.set_right(wanted).await?.repairs);
            }
            return Ok(Verified {
                repairs,
                read_back,
                took: started.elapsed(),
            });
        }
        repairs.extend(self.set_right(wanted).await?.repairs);
        Ok(Verified {
            repairs,
            read_back: true,
            took: started.elapsed(),
        })
    }

    /// Looks whether our rules are as they were. If nothing but the place of a jump is not,
    /// the jump is moved: that does not wait until tens of thousands of rules were read.
    fn look_and_move_jumps(&mut self) -> (Look, Vec<Repair>) {
        match self.watch.look() {
            Look::Changed => match self.watch.glance() {
                Glance::Right(moved) => (Look::Same, moved),
                Glance::CannotTell => (Look::Changed, Vec::new()),
            },
            look @ (Look::Same | Look::CannotTell) => (look, Vec::new()),
        }
    }

    /// Finds out whether the kernel still holds `wanted`, as far as that is told without
    /// reading our rules back, and puts right what doesn't. To be called when the
    /// [kernel told](crate::RuleEvents) of a change: a jump that was overtaken is moved by
    /// a transaction of its own, at once and whatever the number of rules.
    ///
    /// With iptables-legacy, which tells nothing, nothing is done:
    /// [`verify`](Self::verify) is what finds changes there.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub(crate) async fn glance(&mut self, wanted: &Arc<Ruleset>) -> Result<Verified, RulesError> {
        let started = Instant::now();
        if !self.watch.can_tell() {
            return Ok(Verified {
                repairs: Vec::new(),
                read_back: false,
                took: started.elapsed(),
            });
        }
        if self.known.as_ref() != Some(wanted) {
            return self.verify(wanted).await;
        }
        match self.watch.glance() {
            Glance::Right(repairs) => Ok(Verified {
                repairs,
                read_back: false,
                took: started.elapsed(),
            }),
            Glance::CannotTell => {
                self.watch.forget();
                self.verify(wanted).await
            }
        }
    }

    /// Whether this generation of nf_tables was made by a transaction of ours, as far as
    /// that can be told.
    pub(crate) fn has_made(&self, generation: u32) -> bool {
        self.watch.has_made(generation)
    }

    /// Moves to the other flavour if kube-proxy turns out to use that one: it may have been
    /// started after us. To be called every now and then; costs little.
    ///
    /// The rules are brought into the new flavour first, then taken out of the old.
    ///
    /// # Errors
    ///
    /// When a program fails. If that was about the new flavour, the rules are still in the
    /// old one; if it was about the old, they are in both, and the next call goes on there.
    pub(crate) async fn reconsider(
        &mut self,
        wanted: &Arc<Ruleset>,
    ) -> Result<Option<FlavourChoice>, RulesError> {
        self.expect_own_family(wanted)?;
        self.empty_left_flavour().await?;
        if self.sees_kube_services() {
            return Ok(None);
        }
        let Some(alternative) = &self.alternative else {
            return Ok(None);
        };
        let Some(choice) = probe_again([&self.tools, alternative]).await else {
            return Ok(None);
        };
        if choice.flavour == self.tools.flavour {
            self.choice = choice;
            return Ok(None);
        }
        let mut moved = Self::new(alternative.clone(), choice, Some(self.tools.clone()));
        moved.apply(wanted).await?;
        moved.left = Some(self.tools.clone());
        *self = moved;
        self.empty_left_flavour().await?;
        Ok(Some(self.choice.clone()))
    }

    /// Whether iptables knows `MASQUERADE --random-fully`.
    pub(crate) fn has_random_fully(&self) -> bool {
        self.tools.random_fully
    }

    /// Whether the kernel takes these rules, tried in a chain that nothing leads to and that
    /// is gone afterwards.
    ///
    /// # Errors
    ///
    /// When it doesn't, or could not be asked.
    pub(crate) async fn takes(&mut self, rules: &[String]) -> Result<(), ToolError> {
        let chain = format!("{SERVICE_PREFIX}TRIAL");
        let mut trial = Transaction::default();
        trial.make_whole(&chain, rules);
        let mut end = Transaction::default();
        end.delete_chain(&chain);
        self.tools.restore(&(trial.text() + &end.text())).await?;
        self.watch.settle(2);
        Ok(())
    }

    /// Whether the nat table can be read.
    pub(crate) async fn try_out(&self) -> Result<(), RulesError> {
        self.tools.save("nat").await?;
        Ok(())
    }

    /// Takes out all that is ours, in this flavour. Fine when nothing is there.
    ///
    /// # Errors
    ///
    /// When a program fails.
    pub(crate) async fn remove(&mut self) -> Result<Removed, RulesError> {
        self.known = None;
        self.empty_left_flavour().await?;
        remove_all(&self.tools).await
    }

    async fn empty_left_flavour(&mut self) -> Result<(), RulesError> {
        if let Some(tools) = &self.left {
            remove_all(tools).await?;
            self.left = None;
        }
        Ok(())
    }

    /// Somebody else may have changed anything: the next call reads back what is there.
    pub(crate) fn forget(&mut self) {
        self.known = None;
        self.watch.forget();
    }

    /// Whether kube-proxy's rules are there, whatever its mode.
    pub(crate) fn sees_kube_proxy(&mut self) -> bool {
        self.sees_kube_services() || has_kube_proxy_in_nf_tables(self.tools.family)
    }

    /// Finds out who else is there, where only the rules tell.
    pub(crate) async fn look_around(&mut self) -> Result<(), RulesError> {
        match self.tools.flavour {
            Flavour::Legacy if self.last_read.lines == 0 && self.tools.may_have_table("nat") => {
                let text = self.tools.save("nat").await?;
                self.last_read = LastRead::of(&Table::parse(&text));
            }
            Flavour::Legacy | Flavour::Nft => {}
        }
        Ok(())
    }

    /// Whether other rules were brought into the kernel last than these.
    pub(crate) fn knows_other_than(&self, rules: &Arc<Ruleset>) -> bool {
        self.known.as_ref().is_some_and(|known| known != rules)
    }

    fn sees_kube_services(&mut self) -> bool {
        match self.tools.flavour {
            Flavour::Nft => self.watch.has_chain("nat", KUBE_SERVICES),
            Flavour::Legacy => self.last_read.kube_services,
        }
    }

    fn expect_own_family(&self, wanted: &Ruleset) -> Result<(), RulesError> {
        let (given, own) = (wanted.family(), self.family());
        if given == own {
            Ok(())
        } else {
            Err(RulesError::OtherFamily { given, own })
        }
    }

    /// Reads the rules back only to see whether they are right; what was put right among
    /// the jumps meanwhile, and whether all the rest is right. Tens of thousands of rules
    /// take their time, for which an overtaken jump does not wait.
    async fn survey(&mut self, wanted: &Arc<Ruleset>) -> Result<(Vec<Repair>, bool), RulesError> {
        let (tools, watch) = (&self.tools, &mut self.watch);
        let generation = watch.generation().ok();
        let reading = async {
            let text = tools.save("nat").await?;
            Ok::<_, ToolError>(difference_to(text, Arc::clone(wanted), Means::SmallestChange).await)
        };
        tokio::pin!(reading);
        let mut repairs = Vec::new();
        let (difference, last_read) = loop {
            match timeout(GLANCE_EVERY, &mut reading).await {
                Ok(read) => break read?,
                Err(_) => match watch.glance() {
                    Glance::Right(moved) => repairs.extend(moved),
                    Glance::CannotTell => return Ok((repairs, false)),
                },
            }
        };
        self.last_read = last_read;
        let untouched = generation.is_some() && self.watch.generation().ok() == generation;
        if untouched && difference.transaction.is_empty() {
            self.watch.trust();
        }
        // What was read while somebody changed it says nothing; there will be another look.
        Ok((repairs, !untouched || difference.transaction.is_empty()))
    }

    /// Reads back what is there and changes what differs. What can't be changed rule by
    /// rule, because somebody else changes it too or because a rule's own text is not
    /// understood, is read again and made anew.
    async fn set_right(&mut self, wanted: &Arc<Ruleset>) -> Result<Difference, RulesError> {
        match self.set_right_by(wanted, Means::SmallestChange).await {
            Ok(difference) => Ok(difference),
            Err(error) => {
                tracing::warn!(%error, "reading the rules back and trying once more");
                self.set_right_by(wanted, Means::Rewrite).await
            }
        }
    }

    async fn set_right_by(
        &mut self,
        wanted: &Arc<Ruleset>,
        means: Means,
    ) -> Result<Difference, RulesError> {
        self.known = None;
        self.watch.begin();
        let text = self.tools.save("nat").await?;
        let difference;
        (difference, self.last_read) = difference_to(text, Arc::clone(wanted), means).await;
        self.commit(&difference.transaction).await?;
        self.known = Some(Arc::clone(wanted));
        Ok(difference)
    }

    /// Hands the transaction to the kernel; an empty one is not worth a call.
    async fn commit(&mut self, transaction: &Transaction) -> Result<(), RulesError> {
        if transaction.is_empty() {
            self.watch.settle(0);
            return Ok(());
        }
        match self.restore(transaction).await {
            // One message that is too long is refused whole: nothing has changed yet.
            Err(error) if error.is_too_long() && self.rules_per_step.is_none() => {
                self.rules_per_step = Some(RULES_PER_STEP);
                self.restore(transaction).await
            }
            outcome => outcome,
        }
        .map_err(|error| {
            self.watch.forget();
            error.into()
        })
    }

    async fn restore(&mut self, transaction: &Transaction) -> Result<(), ToolError> {
        let (text, steps) = match self.rules_per_step {
            Some(most) if transaction.lines() > most => transaction.sections(most),
            Some(_) | None => (transaction.text(), 1),
        };
        self.tools.restore(&text).await?;
        self.last_read.lines += transaction.lines();
        self.watch.settle(steps);
        Ok(())
    }
}

//! The sync loop: catalog in, kernel out.
//!
//! One owner for everything that follows from a plan. After each change: plan,
//! portals (make), routes and rules, and only then what is gone (break). In
//! between, a look whether the kernel still has what it was given.

mod deciding;
mod ending;
mod inputs;
mod obstacles;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_forward::Forwarder;
use edgemesh_rules::{
    Backend, Family, HostForwarding, HostNetwork, HostNetworkChanges, Mark, Repair, Ruleset,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::health::{Condition, Health};
use crate::in_force::{InForce, Planned, Telling};
use crate::sync_figures::SyncFigures;
use crate::udp_flows::UdpFlows;
use crate::undoings::Undoings;
use crate::wanted::{self, Before};

pub(crate) use ending::Withdrawn;
pub(crate) use inputs::Inputs;
use obstacles::Obstacles;

/// Pause after the first failure to program the kernel; doubled for each further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Longest pause between attempts.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Of the time, at most one in so many parts is spent on looking at changes of others that
/// turn out not to concern us.
const LOOKING_SHARE: u32 = 50;

/// However long such a look took, another may follow after this time.
const LONGEST_NOT_LOOKING: Duration = Duration::from_millis(500);

/// What one family has in the kernel, and what it is to be.
struct FamilyRules {
    host: HostNetwork,
    backend: Backend,
    /// The ruleset without portals: addresses, ports, mark.
    empty: Ruleset,
    /// What the last successful transaction made of it; none before the first one.
    wanted: Option<Arc<Ruleset>>,
    /// What that was made of.
    made_of: Option<Planned>,
    flows: UdpFlows,
}

impl FamilyRules {
    /// What the next ruleset goes on from.
    fn before(&self) -> Option<Before<'_>> {
        Some(Before {
            rules: self.wanted.as_deref()?,
            basis: self.made_of.as_ref()?.basis(),
        })
    }
}

/// The loop and all that it owns.
pub(crate) struct Sync {
    inputs: Inputs,
    forwarder: Forwarder,
    families: Vec<FamilyRules>,
    health: Health,
    figures: Arc<SyncFigures>,
    telling: Telling,
    check_period: Duration,
    failures: u32,
    /// Whether the last plan could not be put in force: what the kernel has is an older one.
    behind: bool,
    undoings: Undoings,
    forwarding: HostForwarding,
    obstacles: Obstacles,
}

/// What a [`Sync`] is made of.
pub(crate) struct Parts {
    pub(crate) inputs: Inputs,
    pub(crate) forwarder: Forwarder,
    pub(crate) families: Vec<FamilyParts>,
    pub(crate) mark: Mark,
    pub(crate) health: Health,
    pub(crate) figures: Arc<SyncFigures>,
    pub(crate) check_period: Duration,
}

/// What the kernel is told through, for one family.
pub(crate) struct FamilyParts {
    pub(crate) intercept: IpAddr,
    pub(crate) host: HostNetwork,
    pub(crate) backend: Backend,
}

impl Sync {
    /// Puts the parts together. The forwarder is bound, its ports are known.
    pub(crate) fn new(parts: Parts) -> Self {
        let refusal_ports: BTreeMap<IpAddr, u16> = parts
            .forwarder
            .refusal_addrs()
            .map(|at| (at.ip(), at.port()))
            .collect();
        let tcp_ports: BTreeMap<IpAddr, u16> = parts
            .forwarder
            .listen_addrs()
            .map(|at| (at.0.ip(), at.0.port()))
            .collect();
        let families = parts
            .families
            .into_iter()
            .filter_map(|family| {
                let refusal_port = *refusal_ports.get(&family.intercept)?;
                let tcp_port = *tcp_ports.get(&family.intercept)?;
                Some(FamilyRules {
                    host: family.host,
                    backend: family.backend,
                    empty: Ruleset::new(family.intercept, refusal_port, parts.mark)
                        .forwarding_tcp_at(tcp_port),
                    wanted: None,
                    made_of: None,
                    flows: UdpFlows::default(),
                })
            })
            .collect();
        Self {
            inputs: parts.inputs,
            forwarder: parts.forwarder,
            families,
            health: parts.health,
            figures: parts.figures,
            telling: Telling::default(),
            check_period: parts.check_period,
            failures: 0,
            behind: false,
            undoings: Undoings::listen(parts.check_period),
            forwarding: HostForwarding::open(),
            obstacles: Obstacles::default(),
        }
    }

    /// What is in force, now and from now on, for those who ask.
    pub(crate) fn in_force(&self) -> watch::Receiver<InForce> {
        self.telling.subscribe()
    }

    /// Goes round until `stop`, between two steps and never within one; or until the
    /// forwarder is beyond repair.
    pub(crate) async fn run(&mut self, stop: &CancellationToken) {
        let mut check = interval(self.check_period);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes that come while a sync runs are taken together by the next one, and
        // that one keeps a distance of the last one's length: churn costs half a core at
        // the most, and a single change is taken up at once.
        let mut not_before = Instant::now();
        let mut pending = true;
        // Somebody changed rules; whether ours, a look will tell, but not before a time.
        let mut look = false;
        let mut look_not_before = Instant::now();
        loop {
            self.health.tick();
            let may_look = look_not_before.max(self.undoings.not_before());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(may_look), if look => {
                    look = false;
                    let began = Instant::now();
                    let outcome = self.glance().await;
                    if matches!(outcome, Ok(false)) {
                        let pause = began.elapsed() * LOOKING_SHARE;
                        look_not_before = Instant::now() + pause.min(LONGEST_NOT_LOOKING);
                    }
                    if let Some(pause) = self.outcome(Round::Look, outcome.map(|_| ())) {
                        pending = true;
                        not_before = Instant::now() + pause;
                    }
                }
                () = self.undoings.next() => look = true,
                Ok(()) = self.inputs.source.changed(), if !pending => pending = true,
                Ok(()) = self.inputs.policy.changed(), if !pending => pending = true,
                Ok(()) = self.inputs.reachability.changed(), if !pending => pending = true,
                () = sleep_until(not_before), if pending => {
                    let began = Instant::now();
                    let outcome = self.follow_catalog().await;
                    not_before = match self.outcome(Round::Follow, outcome) {
                        None => Instant::now() + began.elapsed(),
                        Some(pause) => Instant::now() + pause,
                    };
                    pending = self.failures > 0 || self.host_changed();
                }
                _ = check.tick() => {
                    if Instant::now() < self.undoings.not_before() {
                        continue;
                    }
                    let outcome = self.check().await;
                    pending |= self.host_changed();
                    if let Some(pause) = self.outcome(Round::Look, outcome) {
                        // What a check could not repair, the full way has to.
                        pending = true;
                        not_before = Instant::now() + pause;
                    }
                }
                ended = self.forwarder.task_ended() => {
                    if !ended.recoverable {
                        tracing::error!(%ended, "the forwarder cannot go on");
                        self.health.set(Condition::Listener, Err(ended.to_string()));
                        return;
                    }
                    tracing::warn!(%ended, "a part of the forwarder is opened anew");
                    pending = true;
                }
            }
        }
    }

    async fn follow_catalog(&mut self) -> Result<(), SyncError> {
        let (catalog, complete) = {
            let state = self.inputs.source.borrow_and_update();
            (state.catalog.clone(), state.complete)
        };
        if !complete {
            // A half-read catalog looks like deleted Services.
            return Ok(());
        }
        self.health.set(Condition::Catalog, Ok(()));
        if !self.inputs.knows_ways(&catalog) {
            // The tunnel tells in a moment, which brings us back.
            return Ok(());
        }
        let planned = self.decide(catalog);
        self.apply(&planned).await?;
        self.forwarder.retire();
        let Planned {
            catalog,
            plan,
            destinations,
            ..
        } = &planned;
        self.figures
            .planned(catalog, wanted::handling(plan, destinations));
        let unserved = destinations.failed.len();
        self.telling.planned(planned);
        if unserved == 0 {
            Ok(())
        } else {
            Err(SyncError::Unserved(unserved))
        }
    }

    async fn apply(&mut self, planned: &Planned) -> Result<(), SyncError> {
        let Planned {
            catalog, policy, ..
        } = planned;
        let pod_networks = catalog
            .node(&policy.node)
            .map_or(&[][..], |node| &node.pod_cidrs);
        let wanted: Vec<Ruleset> = self
            .families
            .iter()
            .map(|family| {
                let empty = family.empty.clone().with_pods(pod_networks.iter().copied());
                wanted::ruleset(empty, planned.basis(), family.before())
            })
            .collect();
        let began = Instant::now();
        let mut repairs = Vec::new();
        for (family, wanted) in self.families.iter_mut().zip(wanted) {
            let wanted = Arc::new(wanted);
            // Routes before rules: a rule for an address without a route is of no use to
            // the host's own processes.
            let changes = family.host.apply(wanted.addresses()).await?;
            tracing::debug!(family = %wanted.family(), %changes, "address and routes follow");
            let applied = family.backend.apply(&wanted).await?;
            tracing::debug!(family = %wanted.family(), ?applied, "rules follow the catalog");
            self.figures.applied(&applied);
            family
                .flows
                .rules_changed(family.wanted.as_deref(), &wanted);
            family.flows.tidy(&wanted).await;
            family.made_of = Some(planned.clone());
            match family.wanted.replace(Arc::clone(&wanted)) {
                Some(_) => repairs.extend(in_family(wanted.family(), applied.repairs)),
                // The first time there is nothing to repair, only what another run left.
                None => {
                    tracing::info!(
                        family = %wanted.family(),
                        portals = wanted.portals().len(),
                        lines = applied.lines,
                        took = ?applied.took,
                        "rules are in"
                    );
                }
            }
            self.telling
                .holds(wanted.family(), family.backend.choice(), &[]);
            self.figures
                .goes_by(wanted.family(), family.backend.choice().kind);
        }
        self.undone(began, &repairs);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SyncError> {
        let began = Instant::now();
        let mut repairs = Vec::new();
        for family in &mut self.families {
            let Some(wanted) = &family.wanted else {
                continue;
            };
            let changes = family.host.verify(wanted.addresses()).await?;
            report_changes(&self.figures, wanted.family(), &changes);
            let verified = family.backend.verify(wanted).await?;
            family.flows.tidy(wanted).await;
            repairs.extend(in_family(wanted.family(), verified.repairs));
            let put_back: Vec<String> = (!changes.is_nothing())
                .then(|| format!("address or routes: {changes}"))
                .into_iter()
                .collect();
            if let Some(switched) = family.backend.reconsider(wanted).await? {
                tracing::warn!(
                    family = %wanted.family(), backend = %switched.choice,
                    "kube-proxy's rules are elsewhere now; ours were moved there"
                );
            }
            self.telling
                .holds(wanted.family(), family.backend.choice(), &put_back);
            self.figures
                .goes_by(wanted.family(), family.backend.choice().kind);
        }
        self.undone(began, &repairs);
        Ok(())
    }

    /// Looks after a change that the kernel told of; whether anything had to be put right.
    async fn glance(&mut self) -> Result<bool, SyncError> {
        let began = Instant::now();
        let mut repairs = Vec::new();
        for family in &mut self.families {
            let Some(wanted) = &family.wanted else {
                continue;
            };
            let verified = family.backend.glance(wanted).await?;
            repairs.extend(in_family(wanted.family(), verified.repairs));
        }
        self.undone(began, &repairs);
        Ok(!repairs.is_empty())
    }

    /// Takes down what had been undone and is repaired now, by a round that `began` then.
    fn undone(&mut self, began: Instant, repairs: &[(Family, Repair)]) {
        let families = &self.families;
        let is_ours = |generation| {
            families
                .iter()
                .any(|family| family.backend.has_made(generation))
        };
        self.undoings.looked(began, repairs, is_ours, &self.telling);
        repairs.iter().for_each(|_| self.figures.repaired());
    }

    /// Takes an outcome down; after a failure, how long to wait before the next attempt.
    fn outcome(&mut self, round: Round, outcome: Result<(), SyncError>) -> Option<Duration> {
        if round == Round::Follow {
            self.behind = outcome.as_ref().is_err_and(|error| !error.is_in_force());
        }
        match outcome {
            Ok(()) => {
                // A look that found all as it was says nothing about a plan that failed.
                if !self.behind {
                    self.failures = 0;
                    self.rules_are_in();
                }
                None
            }
            Err(error) => {
                let pause = retry_pause(self.failures);
                self.failures = self.failures.saturating_add(1);
                self.figures.failed();
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    retry_in = ?pause,
                    "what was in force stays in force"
                );
                if error.is_in_force() {
                    self.rules_are_in();
                } else {
                    self.health.set(Condition::Rules, Err(error.to_string()));
                }
                Some(pause)
            }
        }
    }

    fn rules_are_in(&self) {
        if self.families.iter().all(|family| family.wanted.is_some()) {
            self.health.set(Condition::Rules, Ok(()));
        }
    }
}

/// What a round of the loop was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// To put the catalog in force.
    Follow,
    /// To see whether it still is.
    Look,
}

fn report_changes(figures: &SyncFigures, family: Family, changes: &HostNetworkChanges) {
    if !changes.is_nothing() {
        figures.repaired();
        tracing::warn!(%family, %changes, "address or routes were repaired");
    }
}

fn in_family(family: Family, repairs: Vec<Repair>) -> impl Iterator<Item = (Family, Repair)> {
    repairs.into_iter().map(move |repair| (family, repair))
}

/// Why a round of the loop did not reach its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// iptables or nf_tables would not.
    #[error(transparent)]
    Rules(#[from] edgemesh_rules::RulesError),
    /// The kernel refused an address or a route.
    #[error(transparent)]
    Host(#[from] edgemesh_rules::HostNetworkError),
    /// Some portals have no socket.
    #[error(
        "{0} portals could not be served and are left to kube-proxy; their reasons are in the log"
    )]
    Unserved(usize),
}

impl SyncError {
    /// Whether the plan is in force all the same, but for portals that stay kube-proxy's.
    fn is_in_force(&self) -> bool {
        match self {
            SyncError::Unserved(_) => true,
            SyncError::Rules(_) | SyncError::Host(_) => false,
        }
    }
}

fn retry_pause(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_attempts_grow_to_a_limit() {
        assert_eq!(retry_pause(0), Duration::from_millis(500));
        assert_eq!(retry_pause(3), Duration::from_secs(4));
        assert_eq!(retry_pause(10), LAST_RETRY);
        assert_eq!(retry_pause(u32::MAX), LAST_RETRY);
    }
}

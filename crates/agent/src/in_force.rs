//! What the sync loop has put in force, published for whoever asks.

use std::sync::Arc;
use std::time::SystemTime;

use edgemesh_catalog::Catalog;
use edgemesh_forward::Destinations;
use edgemesh_plan::{Earlier, HostFacts, OwnPods, Plan, Policy, Reachability};
use edgemesh_rules::{BackendChoice, BackendKind, Family};
use tokio::sync::watch;

use crate::precedence_record::PrecedenceRecord;
use crate::wanted::Basis;

/// The plan that is in force, what it was made of, and how each family's rules fare.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    /// None before the first plan.
    pub(crate) planned: Option<Planned>,
    /// The families that are intercepted.
    pub(crate) families: Vec<FamilyInForce>,
}

/// A plan with all that it follows from and leads to.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) catalog: Catalog,
    pub(crate) reachability: Reachability,
    pub(crate) policy: Policy,
    pub(crate) plan: Arc<Plan>,
    pub(crate) destinations: Arc<Destinations>,
}

impl Planned {
    /// What the next plan may build on.
    pub(crate) fn as_earlier(&self) -> Earlier<'_> {
        Earlier {
            catalog: &self.catalog,
            reachability: &self.reachability,
            policy: &self.policy,
            plan: &self.plan,
        }
    }

    /// What rules are made of.
    pub(crate) fn basis(&self) -> Basis<'_> {
        Basis {
            plan: &self.plan,
            own_pods: OwnPods::of(&self.catalog, &self.policy),
            destinations: &self.destinations,
        }
    }
}

/// How one family's rules fare.
#[derive(Clone, Debug)]
pub(crate) struct FamilyInForce {
    pub(crate) family: Family,
    /// What the rules are programmed through, for example `iptables-nft`.
    pub(crate) backend: String,
    /// Why that one.
    pub(crate) reason: String,
    pub(crate) precedence: PrecedenceRecord,
}

/// The sync loop's end of the channel.
#[derive(Debug, Default)]
pub(crate) struct Telling(watch::Sender<InForce>);

impl Telling {
    /// The readers' end.
    pub(crate) fn subscribe(&self) -> watch::Receiver<InForce> {
        self.0.subscribe()
    }

    /// The plan that was told of last.
    pub(crate) fn last_planned(&self) -> Option<Planned> {
        self.0.borrow().planned.clone()
    }

    /// Whether that plan was made for a host of which `facts` do not hold.
    pub(crate) fn host_is_other_than(&self, facts: &HostFacts) -> bool {
        let told = self.0.borrow();
        told.planned
            .as_ref()
            .is_some_and(|planned| planned.policy.host != *facts)
    }

    /// A plan is in force from now on.
    pub(crate) fn planned(&self, planned: Planned) {
        self.0.send_modify(|told| told.planned = Some(planned));
    }

    /// A family's rules are in and stand where they must; `repairs` were needed for it.
    pub(crate) fn holds(&self, family: Family, choice: &BackendChoice, repairs: &[String]) {
        let now = SystemTime::now();
        self.0.send_if_modified(|told| {
            let (known, new) = family_of(told, family);
            let backend = match choice.kind {
                BackendKind::Iptables(flavour) => format!("{}-{flavour}", family.tool()),
                BackendKind::Nftables => choice.kind.to_string(),
            };
            let moved = known.backend != backend || known.reason != choice.reason;
            if moved {
                (known.backend, known.reason) = (backend, choice.reason.clone());
            }
            for what in repairs {
                known.precedence.repaired(what.clone(), None, now);
            }
            known.precedence.holds(now);
            new || moved || !repairs.is_empty()
        });
    }

    /// A rule of ours was put back that somebody, by the kernel's word `by`, had undone.
    pub(crate) fn undone(&self, family: Family, what: String, by: Option<String>, at: SystemTime) {
        self.0.send_modify(|told| {
            let (known, _) = family_of(told, family);
            known.precedence.repaired(what, by, at);
        });
    }
}

/// What is known of a family, and whether it is new.
fn family_of(told: &mut InForce, family: Family) -> (&mut FamilyInForce, bool) {
    let place = told
        .families
        .iter()
        .position(|known| known.family == family);
    let new = place.is_none();
    let place = place.unwrap_or_else(|| {
        told.families.push(FamilyInForce {
            family,
            backend: String::new(),
            reason: String::new(),
            precedence: PrecedenceRecord::default(),
        });
        told.families.len() - 1
    });
    (&mut told.families[place], new)
}

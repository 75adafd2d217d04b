//! The gate before the portals in iptables: open while an agent lives, and only then.
//!
//! A rule before all portals asks an IP set whose elements vanish by themselves, unless
//! the agent refreshes them. An agent that was killed or hangs does not, so that new
//! connections are kube-proxy's again; where there is no kube-proxy, they are refused.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use edgemesh_catalog::SharedMap;
use edgemesh_plan::Frontend;

use crate::ip_set::{IpSets, SetKind, SetName};
use crate::{Family, PortalRule, Ruleset};

/// Seconds after which the gate closes by itself.
const LIFETIME: u32 = 2;

/// What becomes of new connections while no agent lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// They go on to a listener where nobody answers. For kernels without IP sets.
    #[default]
    None,
    /// They go on to the rules of kube-proxy.
    KubeProxy,
    /// They are refused at once, there being nobody else to serve them.
    Refuse,
}

/// The set that tells whether an agent lives: all addresses are in it, or none.
pub(crate) fn alive_set(family: Family) -> SetName {
    let name = match family {
        Family::V4 => "EDGEMESH-ALIVE",
        Family::V6 => "EDGEMESH-ALIVE-6",
    };
    SetName { name, family }
}

/// The set of all portals.
pub(crate) fn portals_set(family: Family) -> SetName {
    let name = match family {
        Family::V4 => "EDGEMESH-PORTALS",
        Family::V6 => "EDGEMESH-PORTALS-6",
    };
    SetName { name, family }
}

/// Where the set of all portals is made anew, before it takes the place of the one in use.
fn next_portals_set(family: Family) -> SetName {
    let name = match family {
        Family::V4 => "EDGEMESH-PORTALS-NEXT",
        Family::V6 => "EDGEMESH-PORTALS-6-NEXT",
    };
    SetName { name, family }
}

/// All addresses: a hash:net holds no /0.
fn all_addresses(family: Family) -> [IpAddr; 2] {
    match family {
        Family::V4 => [
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(128, 0, 0, 0).into(),
        ],
        Family::V6 => [
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0).into(),
        ],
    }
}

/// Keeps the gate open for another [`LIFETIME`]. Without a gate nothing is done.
pub(crate) fn keep_open(sets: &mut IpSets, family: Family) -> io::Result<()> {
    for network in all_addresses(family) {
        match sets.add_network(alive_set(family), network, 1) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Closes the gate at once. Without a gate nothing is done.
pub(crate) fn close(sets: &mut IpSets, family: Family) -> io::Result<()> {
    match sets.flush(alive_set(family)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Owner of one family's sets.
#[derive(Debug)]
pub(crate) struct GateSets {
    family: Family,
    sets: IpSets,
    /// What the set of portals holds; none when it is not known.
    portals: Option<Held>,
}

/// Portals that are in their set.
#[derive(Debug)]
struct Held {
    portals: SharedMap<Frontend, PortalRule>,
    /// Others that are in it still.
    surplus: BTreeSet<Frontend>,
}

impl GateSets {
    /// Makes the sets; a gate that is there already stays as it is.
    pub(crate) fn create(family: Family) -> io::Result<Self> {
        let mut sets = IpSets::open()?;
        let alive = SetKind::PassingNetworks { seconds: LIFETIME };
        sets.create(alive_set(family), alive)?;
        sets.create(portals_set(family), SetKind::Portals)?;
        Ok(Self {
            family,
            sets,
            portals: None,
        })
    }

    /// Closes the gate.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        close(&mut self.sets, self.family)
    }

    /// Opens the gate, or keeps it open.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        keep_open(&mut self.sets, self.family)
    }

    /// Adds the portals of `rules` to their set: to be called before a rule leads there.
    ///
    /// What the set held before is unknown at first. It is exchanged then, in one step, since
    /// the rules of an agent before this one may still ask it.
    pub(crate) fn add_portals(&mut self, rules: &Ruleset) -> io::Result<()> {
        let portals = rules.portals();
        let Some(Held {
            portals: held,
            mut surplus,
        }) = self.portals.take()
        else {
            self.make_portals_anew(portals)?;
            self.portals = Some(Held {
                portals: portals.clone(),
                surplus: BTreeSet::new(),
            });
            return Ok(());
        };
        let mut new = only_in(portals, &held);
        new.retain(|portal| !surplus.contains(portal));
        let set = portals_set(self.family);
        self.sets.add_portals(set, &new)?;
        surplus.extend(only_in(&held, portals));
        surplus.retain(|portal| !portals.contains_key(portal));
        self.portals = Some(Held {
            portals: portals.clone(),
            surplus,
        });
        Ok(())
    }

    /// Takes all other portals out of their set. Nothing of ours is asked about them any more,
    /// though their rules be there.
    pub(crate) fn keep_portals(&mut self, rules: &Ruleset) -> io::Result<()> {
        let portals = rules.portals();
        let Some(held) = self.portals.take() else {
            return Ok(());
        };
        let mut gone = only_in(&held.portals, portals);
        gone.extend(held.surplus);
        gone.retain(|portal| !portals.contains_key(portal));
        let set = portals_set(self.family);
        self.sets.remove_portals(set, &gone)?;
        self.portals = Some(Held {
            portals: portals.clone(),
            surplus: BTreeSet::new(),
        });
        Ok(())
    }

    /// Whether the set of portals holds as many as it was given. If not, somebody changed it,
    /// and the next call of [`add_portals`](Self::add_portals) makes it anew.
    pub(crate) fn are_portals_whole(&mut self) -> bool {
        let Some(held) = &self.portals else {
            return true;
        };
        let whole = match self.sets.count(portals_set(self.family)) {
            Ok(count) => count.is_none_or(|count| count == held.portals.len() + held.surplus.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(_) => true,
        };
        if !whole {
            self.portals = None;
        }
        whole
    }

    fn make_portals_anew(&mut self, portals: &SharedMap<Frontend, PortalRule>) -> io::Result<()> {
        let (set, next) = (portals_set(self.family), next_portals_set(self.family));
        let sets = &mut self.sets;
        // One that an agent left when it was killed just then.
        sets.destroy(next)?;
        sets.create(next, SetKind::Portals)?;
        let portals: Vec<Frontend> = portals.keys().copied().collect();
        let exchanged = sets
            .add_portals(next, &portals)
            .and_then(|()| sets.create(set, SetKind::Portals))
            .and_then(|()| sets.swap(set, next));
        exchanged.and(sets.destroy(next).map(|_| ()))
    }
}

/// The portals that are in the one and not in the other.
fn only_in(
    one: &SharedMap<Frontend, PortalRule>,
    other: &SharedMap<Frontend, PortalRule>,
) -> Vec<Frontend> {
    let differing = one.differing(other);
    differing
        .filter(|(_, _, in_other)| in_other.is_none())
        .map(|(portal, _, _)| *portal)
        .collect()
}

/// Removes the sets, which no rule may ask any more; whether any was there.
pub(crate) fn remove_sets(family: Family) -> io::Result<bool> {
    let mut sets = IpSets::open()?;
    let alive = sets.destroy(alive_set(family));
    let portals = sets.destroy(portals_set(family));
    let next = sets.destroy(next_portals_set(family));
    // A kernel without IP sets has none of ours either.
    let tolerated = |outcome: io::Result<bool>| match outcome {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        other => other,
    };
    Ok(tolerated(alive)? | tolerated(portals)? | tolerated(next)?)
}

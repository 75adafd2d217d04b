//! Which endpoint of a portal is tried next. Pure: time and chance are arguments.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgemesh_plan::{PortalEndpoint, Way};

use crate::Strategy;
use crate::affinity::Affinity;
use crate::chance::{below, shuffle};

/// The endpoints of one portal with what is known about them.
#[derive(Debug)]
pub(crate) struct Balancer {
    strategy: Strategy,
    /// Sorted by address, as the plan has them.
    endpoints: Arc<[PortalEndpoint]>,
    /// Places in `endpoints`; the front is next in turn. Whoever is used goes to the back, so
    /// that turns stay fair when the list changes, which a counter modulo its length does not.
    turns: VecDeque<usize>,
    /// Only those that failed and have not answered since: usually empty.
    unwell: BTreeMap<SocketAddr, Unwell>,
    /// In a box: few portals have it.
    affinity: Option<Box<Affinity>>,
    /// Whether the kernel sends native endpoints their share already.
    native_have_share: bool,
}

#[derive(Debug)]
struct Unwell {
    /// In a row; decides how long it is left out. None yet where an attempt merely lasts.
    failures: u32,
    absence: Absence,
}

#[derive(Debug, Clone, Copy)]
enum Absence {
    LeftOutUntil(Instant),
    /// One connection is trying it; the others keep away until that has an answer.
    OnTrial,
}

/// An endpoint to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Which one.
    pub(crate) endpoint: PortalEndpoint,
    /// Whether this attempt decides if an endpoint that was left out comes back.
    pub(crate) trial: bool,
    /// Whether session affinity chose it: worth more patience than any other.
    pub(crate) remembered: bool,
}

impl Balancer {
    const FIRST_ABSENCE: Duration = Duration::from_secs(1);
    const LONGEST_ABSENCE: Duration = Duration::from_secs(60);

    /// `random` decides who is first, so that nodes do not all begin with the same endpoint.
    pub(crate) fn new(
        strategy: Strategy,
        endpoints: Arc<[PortalEndpoint]>,
        affinity: Option<Duration>,
        random: u64,
    ) -> Self {
        let mut order: Vec<usize> = (0..endpoints.len()).collect();
        shuffle(&mut order, random);
        let mut balancer = Self {
            strategy,
            endpoints,
            turns: order.into(),
            unwell: BTreeMap::new(),
            affinity: None,
            native_have_share: false,
        };
        balancer.set_affinity(affinity);
        balancer
    }

    /// Those that may be tried, sorted by address.
    pub(crate) fn endpoints(&self) -> &Arc<[PortalEndpoint]> {
        &self.endpoints
    }

    /// Whether `address` is among them.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        position(&self.endpoints, address).is_some()
    }

    /// Whether `address` is among them and reached by `way`.
    pub(crate) fn has_by(&self, address: SocketAddr, way: Way) -> bool {
        position(&self.endpoints, address).is_some_and(|place| self.endpoints[place].way == way)
    }

    /// How long a client keeps its endpoint.
    pub(crate) fn affinity(&self) -> Option<Duration> {
        self.affinity.as_ref().map(|affinity| affinity.timeout())
    }

    /// Changes how long a client keeps its endpoint; none forgets all clients.
    pub(crate) fn set_affinity(&mut self, timeout: Option<Duration>) {
        match (timeout, &mut self.affinity) {
            (None, _) => self.affinity = None,
            (Some(timeout), Some(affinity)) => affinity.set_timeout(timeout),
            (Some(timeout), none) => {
                *none = Some(Box::new(Affinity::new(timeout, Affinity::MOST_CLIENTS)));
            }
        }
    }

    /// Whether the kernel sends connections to native endpoints itself, and here those only
    /// that are the others' share. Native ones are then tried after all others.
    pub(crate) fn set_native_have_share(&mut self, native_have_share: bool) {
        self.native_have_share = native_have_share;
    }

    /// Replaces the list. Those that stay keep their turn and, while the way to them is the
    /// same, their state; new ones come last, in an order that `random` decides.
    pub(crate) fn set_endpoints(&mut self, endpoints: Arc<[PortalEndpoint]>, random: u64) {
        let staying = self
            .turns
            .iter()
            .filter_map(|&place| self.endpoints.get(place))
            .filter_map(|old| position(&endpoints, old.address));
        let mut new: Vec<usize> = (0..endpoints.len())
            .filter(|&place| !self.has(endpoints[place].address))
            .collect();
        shuffle(&mut new, random);
        self.turns = staying.chain(new).collect();
        let known = &self.endpoints;
        self.unwell.retain(|&address, _| {
            let way = |list: &[PortalEndpoint]| position(list, address).map(|at| list[at].way);
            way(&endpoints).is_some_and(|now| way(known) == Some(now))
        });
        self.endpoints = endpoints;
    }

    /// The next endpoint for a connection of `client` that has `tried` some already; none
    /// when it tried all.
    ///
    /// First the one the client is used to, then whoever is in turn and well or due for
    /// another trial, those before all that have no share of the kernel's, then those of which
    /// an answer is awaited, and when there is none even those that are left out: a connection
    /// is never refused on hearsay.
    pub(crate) fn pick(
        &mut self,
        client: IpAddr,
        tried: &[SocketAddr],
        now: Instant,
        random: u64,
    ) -> Option<Pick> {
        let remembered = self.remembered(client, tried, now);
        let usable = |b: &Self, at: usize| b.is_open(at, tried) && b.is_usable(at, now);
        let place = remembered
            .or_else(|| self.choose(random, |b, at| usable(b, at) && b.lacks_share(at)))
            .or_else(|| self.choose(random, usable))
            .or_else(|| self.choose(random, |b, at| b.is_open(at, tried) && !b.has_failed(at)))
            .or_else(|| self.choose(random, |b, at| b.is_open(at, tried)))?;
        let endpoint = self.endpoints.get(place)?.clone();
        let trial = self.begin_trial(endpoint.address, now);
        if let (Some(affinity), true) = (&mut self.affinity, tried.is_empty()) {
            // Before its outcome is known, so that connections opened at once stay together.
            affinity.remember(client, endpoint.address, now);
        }
        Some(Pick {
            endpoint,
            trial,
            remembered: remembered.is_some(),
        })
    }

    /// `address` answered: it is well. Holds whoever asked.
    pub(crate) fn succeeded(&mut self, address: SocketAddr) {
        self.unwell.remove(&address);
    }

    /// The client's connection stands: later ones are to follow it.
    pub(crate) fn settled(&mut self, client: IpAddr, address: SocketAddr, now: Instant) {
        if let Some(affinity) = &mut self.affinity {
            affinity.remember(client, address, now);
        }
    }

    /// An attempt lasts longer than one is waited for alone, and will have an outcome by
    /// `until`. Other connections try others first for so long: else each that comes in the
    /// meantime would find the same out for itself. Clients that are used to the endpoint stay
    /// with it, for it may be one packet that was lost.
    pub(crate) fn unanswered(&mut self, address: SocketAddr, until: Instant) {
        if self.has(address) {
            self.unwell.entry(address).or_insert(Unwell {
                failures: 0,
                absence: Absence::LeftOutUntil(until),
            });
        }
    }

    /// An attempt failed. The endpoint is left out for 1 s, after the next failed trial for
    /// 2 s, 4 s and so on up to 60 s. What many connections find out at once counts once.
    pub(crate) fn failed(&mut self, address: SocketAddr, trial: bool, now: Instant) {
        if !self.has(address) {
            return;
        }
        let failures = match self.unwell.get(&address) {
            None => 1,
            Some(known) if trial || known.failures == 0 => known.failures.saturating_add(1),
            Some(_) => return,
        };
        let absence = Absence::LeftOutUntil(now + absence_after(failures));
        self.unwell.insert(address, Unwell { failures, absence });
    }

    /// An attempt failed on the way to the endpoint, of which nothing was learnt. Others come
    /// first for 1 s, and never longer, for the way may be whole again at any moment; what is
    /// known of the endpoint itself stays.
    pub(crate) fn way_failed(&mut self, address: SocketAddr, now: Instant) {
        if !self.has(address) {
            return;
        }
        let until = now + Self::FIRST_ABSENCE;
        let unwell = self.unwell.entry(address).or_insert(Unwell {
            failures: 0,
            absence: Absence::LeftOutUntil(until),
        });
        if unwell.failures == 0 {
            unwell.failures = 1;
            unwell.absence = Absence::LeftOutUntil(until);
        }
        match unwell.absence {
            Absence::LeftOutUntil(known) if known > until => {}
            Absence::LeftOutUntil(_) | Absence::OnTrial => {
                unwell.absence = Absence::LeftOutUntil(until);
            }
        }
    }

    /// An attempt ended without telling anything about the endpoint; a trial is due again.
    pub(crate) fn abandoned(&mut self, pick: &Pick, now: Instant) {
        if let (true, Some(known)) = (pick.trial, self.unwell.get_mut(&pick.endpoint.address)) {
            known.absence = Absence::LeftOutUntil(now);
        }
    }

    /// Those that failed and have not answered since, sorted by address: failures in a row,
    /// and how long each is still left out.
    pub(crate) fn unwell(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, u32, Duration)> {
        let failed = self.unwell.iter().filter(|(_, known)| known.failures > 0);
        failed.map(move |(address, known)| {
            let remaining = match known.absence {
                Absence::LeftOutUntil(until) => until.saturating_duration_since(now),
                Absence::OnTrial => Duration::ZERO,
            };
            (*address, known.failures, remaining)
        })
    }

    fn remembered(&self, client: IpAddr, tried: &[SocketAddr], now: Instant) -> Option<usize> {
        let address = self.affinity.as_ref()?.endpoint_of(client, now)?;
        let place = position(&self.endpoints, address)?;
        let is_usable = self.is_usable(place, now) || !self.has_failed(place);
        (self.is_open(place, tried) && is_usable).then_some(place)
    }

    fn choose(&mut self, random: u64, admits: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        match self.strategy {
            Strategy::RoundRobin => {
                let turn = self.turns.iter().position(|&place| admits(self, place))?;
                let place = self.turns.remove(turn)?;
                self.turns.push_back(place);
                Some(place)
            }
            Strategy::Random => {
                let admitted = || (0..self.endpoints.len()).filter(|&at| admits(self, at));
                let how_many = admitted().count();
                admitted().nth(below(how_many.max(1), random))
            }
        }
    }

    /// Whether connections that come here are meant for it.
    fn lacks_share(&self, place: usize) -> bool {
        !self.native_have_share
            || self
                .endpoints
                .get(place)
                .is_some_and(|endpoint| match endpoint.way {
                    Way::Tunnel => true,
                    Way::Native => false,
                })
    }

    fn is_open(&self, place: usize, tried: &[SocketAddr]) -> bool {
        self.endpoints
            .get(place)
            .is_some_and(|endpoint| !tried.contains(&endpoint.address))
    }

    fn is_usable(&self, place: usize, now: Instant) -> bool {
        match self.unwell_at(place).map(|known| known.absence) {
            None => true,
            Some(Absence::LeftOutUntil(until)) => now >= until,
            Some(Absence::OnTrial) => false,
        }
    }

    fn has_failed(&self, place: usize) -> bool {
        self.unwell_at(place)
            .is_some_and(|known| known.failures > 0)
    }

    fn unwell_at(&self, place: usize) -> Option<&Unwell> {
        let endpoint = self.endpoints.get(place)?;
        self.unwell.get(&endpoint.address)
    }

    fn begin_trial(&mut self, address: SocketAddr, now: Instant) -> bool {
        match self.unwell.get_mut(&address) {
            Some(known) => match known.absence {
                Absence::LeftOutUntil(until) if now >= until => {
                    known.absence = Absence::OnTrial;
                    true
                }
                Absence::LeftOutUntil(_) | Absence::OnTrial => false,
            },
            None => false,
        }
    }
}

fn position(endpoints: &[PortalEndpoint], address: SocketAddr) -> Option<usize> {
    endpoints
        .binary_search_by_key(&address, |endpoint| endpoint.address)
        .ok()
}

fn absence_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (Balancer::FIRST_ABSENCE * (1 << doublings)).min(Balancer::LONGEST_ABSENCE)
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;

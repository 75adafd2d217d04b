//! Who is to be probed next, and what follows from the answers. Pure: time is an argument, and
//! somebody else sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgemesh_catalog::{NodeName, PublicKey};
use edgemesh_wire::Probe;
use ipnet::IpNet;

use crate::allowance::Allowance;
use crate::jitter::Jitter;
use crate::places::PeerPlaces;
use crate::timing::Timing;
use crate::track::Track;

/// Failed connections to so many endpoints of a peer, within [`FAILED_WITHIN`], are the fault
/// of the way and not theirs.
const FAILED_ENDPOINTS: usize = 2;
/// So many of them at least.
const FAILED_DIALS: usize = 3;
const FAILED_WITHIN: Duration = Duration::from_secs(10);

/// In which networks each node is reached without the tunnel.
pub(crate) type Verified = Arc<BTreeMap<NodeName, Arc<[IpNet]>>>;

/// A change of this host's network, by which peers may be reached in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkChange {
    /// A route to this network came, went or changed.
    Route(IpNet),
    /// Anything else: an address, an interface, or more than could be told.
    Anything,
}

/// A probe that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) node: NodeName,
    pub(crate) key: PublicKey,
    pub(crate) address: SocketAddr,
}

/// A probe that was sent and is not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) due: Due,
    /// Its bytes, which the answer signs.
    pub(crate) bytes: Box<[u8; Probe::LENGTH]>,
    sent: Instant,
    deadline: Instant,
}

/// All addresses under observation.
#[derive(Debug)]
pub(crate) struct Prober {
    timing: Timing,
    jitter: Jitter,
    peers: BTreeMap<NodeName, PeerTracks>,
    /// What is to be sent when. A track is in it as long as it has a next time.
    queue: BTreeSet<(Instant, NodeName, IpAddr)>,
    asked: BTreeMap<[u8; 32], Asked>,
    deadlines: BTreeSet<(Instant, [u8; 32])>,
    allowance: Allowance,
    /// How many addresses are direct.
    direct: u32,
    /// Another one whenever [`Prober::verified`] may be another.
    version: u64,
}

/// The addresses of one peer.
#[derive(Debug)]
pub(crate) struct PeerTracks {
    pub(crate) places: PeerPlaces,
    pub(crate) tracks: BTreeMap<IpAddr, Track>,
    /// Connections that failed lately.
    failed: Vec<(Instant, IpAddr)>,
}

impl Prober {
    pub(crate) fn new(timing: Timing, seed: u64, now: Instant) -> Self {
        Self {
            timing,
            jitter: Jitter::new(seed),
            peers: BTreeMap::new(),
            queue: BTreeSet::new(),
            asked: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            allowance: Allowance::new(timing.probes_per_second, timing.probes_per_second / 4, now),
            direct: 0,
            version: 0,
        }
    }

    /// All peers that are probed, sorted by name.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (&NodeName, &PeerTracks)> {
        self.peers.iter()
    }

    /// From now on these are probed, at these places. What another key or port was behind is
    /// forgotten at once, and so is what is no place of the peer any more; after a new start
    /// of its agent it is looked at anew, but not forgotten: its network is what it was.
    pub(crate) fn follow(&mut self, wanted: BTreeMap<NodeName, PeerPlaces>, now: Instant) {
        let gone: Vec<NodeName> = self
            .peers
            .iter()
            .filter(|(node, known)| {
                let wanted = wanted.get(*node);
                !wanted.is_some_and(|wanted| {
                    wanted.key == known.places.key && wanted.port == known.places.port
                })
            })
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            self.forget(&node, |_| false);
        }
        let fresh = wanted
            .iter()
            .map(|(node, wanted)| match self.peers.get(node) {
                Some(known) => {
                    let known = &known.tracks;
                    let fresh = wanted.places.keys().filter(|ip| !known.contains_key(ip));
                    fresh.count()
                }
                None => wanted.places.len(),
            })
            .sum::<usize>();
        let spread =
            Duration::from_secs_f64(fresh as f64 / f64::from(self.timing.probes_per_second));
        for (node, wanted) in wanted {
            self.follow_peer(&node, wanted, spread, now);
        }
        self.count_direct();
    }

    fn follow_peer(&mut self, node: &NodeName, wanted: PeerPlaces, spread: Duration, now: Instant) {
        self.forget(node, |ip| wanted.places.contains_key(ip));
        let rebooted = self
            .peers
            .get(node)
            .is_some_and(|known| known.places.boot_id != wanted.boot_id);
        if rebooted {
            self.recheck_peer(node, |_| true, now);
        }
        let known = self
            .peers
            .entry(node.clone())
            .or_insert_with(|| PeerTracks {
                places: wanted.clone(),
                tracks: BTreeMap::new(),
                failed: Vec::new(),
            });
        for ip in wanted.places.keys() {
            known.tracks.entry(*ip).or_insert_with(|| {
                // All at once would be a burst; a single one need not wait.
                let first = now + self.jitter.within(spread);
                self.queue.insert((first, node.clone(), *ip));
                Track::new(now, first)
            });
        }
        known.places = wanted;
    }

    /// Forgets a peer's addresses but those to keep, and the peer if none is left.
    fn forget(&mut self, node: &NodeName, keep: impl Fn(&IpAddr) -> bool) {
        let Some(known) = self.peers.get_mut(node) else {
            return;
        };
        let queue = &mut self.queue;
        known.tracks.retain(|ip, track| {
            let keeps = keep(ip);
            if let Some(next) = track.next().filter(|_| !keeps) {
                queue.remove(&(next, node.clone(), *ip));
            }
            keeps
        });
        if known.tracks.is_empty() {
            self.peers.remove(node);
        }
        self.forget_asked(|of, ip| of != node || keep(&ip));
    }

    /// The next probe that is to be sent now; then one of `sent` and `unsendable` must follow.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        let (at, _, _) = self.queue.first()?;
        if *at > now || !self.allowance.take(now) {
            return None;
        }
        let (_, node, ip) = self.queue.pop_first()?;
        let peer = self.peers.get(&node)?;
        Some(Due {
            key: peer.places.key,
            address: SocketAddr::new(ip, peer.places.port),
            node,
        })
    }

    /// A probe has been sent.
    pub(crate) fn sent(
        &mut self,
        due: Due,
        nonce: [u8; 32],
        bytes: Box<[u8; Probe::LENGTH]>,
        now: Instant,
    ) {
        let timing = self.timing;
        let Some(track) = self.track(&due.node, due.address.ip()) else {
            return;
        };
        let deadline = track.sent(now, &timing);
        self.deadlines.insert((deadline, nonce));
        let asked = Asked {
            due,
            bytes,
            sent: now,
            deadline,
        };
        self.asked.insert(nonce, asked);
    }

    /// A probe could not be sent: there is no way there.
    pub(crate) fn unsendable(&mut self, due: &Due, now: Instant) {
        let timing = self.timing;
        if let Some(track) = self.track(&due.node, due.address.ip()) {
            track.sent(now, &timing);
        }
        self.lose(due, false, now);
    }

    /// The probe with that nonce, as long as an answer to it counts.
    pub(crate) fn asked(&self, nonce: &[u8; 32]) -> Option<&Asked> {
        self.asked.get(nonce)
    }

    /// The probe with that nonce was answered with proof.
    pub(crate) fn proved(&mut self, nonce: &[u8; 32], now: Instant) {
        let Some(asked) = self.asked.remove(nonce) else {
            return;
        };
        self.deadlines.remove(&(asked.deadline, *nonce));
        let (timing, period) = (self.timing, self.period());
        let (node, ip) = (asked.due.node, asked.due.address.ip());
        let round_trip = now.saturating_duration_since(asked.sent);
        self.change(&node, ip, |track, jitter| {
            track.proved(round_trip, now, period, &timing, jitter);
        });
    }

    /// Counts as lost what was not answered in time; how many.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        while let Some((_, nonce)) = self.deadlines.first().filter(|(at, _)| *at <= now).copied() {
            self.deadlines.pop_first();
            if let Some(asked) = self.asked.remove(&nonce) {
                self.lose(&asked.due, true, now);
                lost += 1;
            }
        }
        lost
    }

    fn lose(&mut self, due: &Due, was_sent: bool, now: Instant) {
        let timing = self.timing;
        self.change(&due.node, due.address.ip(), |track, jitter| {
            track.lost(was_sent, now, &timing, jitter);
        });
    }

    /// This host's network changed: what the change may concern is probed at once.
    pub(crate) fn network_changed(&mut self, change: NetworkChange, now: Instant) {
        let concerns = |ip: IpAddr| match change {
            NetworkChange::Route(network) => network.contains(&ip),
            NetworkChange::Anything => true,
        };
        let nodes: Vec<NodeName> = self.peers.keys().cloned().collect();
        for node in nodes {
            self.recheck_peer(&node, concerns, now);
        }
    }

    /// A connection to an endpoint of a direct peer failed: in the network, not at the
    /// endpoint. The way is probed at once. When several endpoints are not reached although
    /// probes are answered, it is not to be relied on all the same.
    pub(crate) fn dial_failed(&mut self, node: &NodeName, endpoint: IpAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        peer.failed
            .retain(|(at, _)| now.saturating_duration_since(*at) < FAILED_WITHIN);
        if peer.failed.len() < 4 * FAILED_DIALS {
            peer.failed.push((now, endpoint));
        }
        let leads_there = |places: &PeerPlaces, ip: &IpAddr| {
            let worth = places.places.get(ip);
            worth.is_some_and(|networks| networks.iter().any(|of| of.contains(&endpoint)))
        };
        let endpoints: BTreeSet<IpAddr> = peer.failed.iter().map(|(_, of)| *of).collect();
        let concerned: Vec<IpAddr> = peer
            .tracks
            .keys()
            .filter(|ip| leads_there(&peer.places, ip))
            .copied()
            .collect();
        if peer.failed.len() < FAILED_DIALS || endpoints.len() < FAILED_ENDPOINTS {
            self.recheck_peer(node, |ip| concerned.contains(&ip), now);
            return;
        }
        peer.failed.clear();
        let timing = self.timing;
        for ip in concerned {
            if self.track(node, ip).is_some_and(|track| track.is_direct()) {
                self.forget_asked(|of, at| of != node || at != ip);
                self.change(node, ip, |track, _| track.drop_now(now, &timing));
            }
        }
    }

    /// No answers count any more but those of probes to keep.
    fn forget_asked(&mut self, keep: impl Fn(&NodeName, IpAddr) -> bool) {
        let deadlines = &mut self.deadlines;
        self.asked.retain(|nonce, asked| {
            let keeps = keep(&asked.due.node, asked.due.address.ip());
            if !keeps {
                deadlines.remove(&(asked.deadline, *nonce));
            }
            keeps
        });
    }

    fn recheck_peer(&mut self, node: &NodeName, concerns: impl Fn(IpAddr) -> bool, now: Instant) {
        let Some(peer) = self.peers.get(node) else {
            return;
        };
        let concerned: Vec<IpAddr> = peer.tracks.keys().copied().collect();
        for ip in concerned.into_iter().filter(|ip| concerns(*ip)) {
            self.change(node, ip, |track, _| track.recheck(now));
        }
    }

    /// When there is something to do again.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        let to_send = self.queue.first().map(|(at, _, _)| {
            let allowed = now + self.allowance.pause();
            (*at).max(if *at <= now { allowed } else { *at })
        });
        let to_expire = self.deadlines.first().map(|(at, _)| *at);
        [to_send, to_expire].into_iter().flatten().min()
    }

    /// A number that is another one after [`Prober::verified`] has become another.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Where each peer is reached without the tunnel now.
    pub(crate) fn verified(&self) -> Verified {
        let verified = self.peers.iter().filter_map(|(node, peer)| {
            let direct = peer.tracks.iter().filter(|(_, track)| track.is_direct());
            let networks: BTreeSet<IpNet> = direct
                .filter_map(|(ip, _)| peer.places.places.get(ip))
                .flat_map(|networks| networks.iter().copied())
                .collect();
            (!networks.is_empty()).then(|| (node.clone(), networks.into_iter().collect()))
        });
        Arc::new(verified.collect())
    }

    /// The period that keeps all periodic probes within their number a second.
    fn period(&self) -> Duration {
        let all = f64::from(self.direct) / f64::from(self.timing.checks_per_second.max(1));
        self.timing.period.max(Duration::from_secs_f64(all))
    }

    fn count_direct(&mut self) {
        let tracks = self.peers.values().flat_map(|peer| peer.tracks.values());
        let direct = tracks.filter(|track| track.is_direct()).count();
        self.direct = u32::try_from(direct).unwrap_or(u32::MAX);
        self.version += 1;
    }

    fn track(&mut self, node: &NodeName, ip: IpAddr) -> Option<&mut Track> {
        self.peers.get_mut(node)?.tracks.get_mut(&ip)
    }

    /// Changes a track, and what follows from it: when it is due, and how many are direct.
    fn change(&mut self, node: &NodeName, ip: IpAddr, by: impl FnOnce(&mut Track, &mut Jitter)) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        let Some(track) = peer.tracks.get_mut(&ip) else {
            return;
        };
        let (due, was_direct) = (track.next(), track.is_direct());
        by(track, &mut self.jitter);
        if let Some(due) = due {
            self.queue.remove(&(due, node.clone(), ip));
        }
        if let Some(next) = track.next() {
            self.queue.insert((next, node.clone(), ip));
        }
        match (was_direct, track.is_direct()) {
            (false, true) => self.direct += 1,
            (true, false) => self.direct = self.direct.saturating_sub(1),
            (false, false) | (true, true) => return,
        }
        self.version += 1;
    }
}

#[cfg(test)]
#[path = "prober_tests.rs"]
mod tests;

//! Whether a probe is answered. What is cheap to find out comes first. Pure: time is an
//! argument, and somebody else receives and sends.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgemesh_catalog::PublicKey;
use edgemesh_tunnel::{NodeKey, Peers, is_signed_by};
use edgemesh_wire::{Probe, ProbeAnswer};

use crate::allowance::Allowance;

/// How far the clocks of two nodes may differ: enough for those that are set now and then,
/// and a bound to how long a probe that somebody recorded can be of any use.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);
/// Probes a second from one address that has not proved to be a peer's: one asks a few times
/// a second when it is unsure.
const PER_STRANGER: u32 = 20;
/// Probes a second from one address of peers: there may be many behind one NAT.
const PER_PEER: u32 = 200;
/// Sources that are remembered.
const SOURCES: usize = 4096;
/// Probes a second from sources that have not proved to be peers, together: as many
/// signatures are verified for whoever sends rubbish.
const STRANGERS: u32 = 100;
/// Probes a second from peers, together.
const PEERS: u32 = 1000;
/// Who proved to be a peer is known as one for so long.
const KNOWN_FOR: Duration = Duration::from_secs(120);

/// Why a probe is not answered. Whoever sent it learns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// It is no probe.
    Malformed,
    /// It asks for another node, or at another address than it came to.
    Elsewhere,
    /// By this node's clock it was sent long ago, or will be.
    WrongTime,
    /// It came from nobody who is believed.
    Stranger,
    /// Too many came, from there or altogether.
    TooMany,
    /// Who it names has not signed it.
    Forged,
}

impl Refused {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::Elsewhere,
        Self::WrongTime,
        Self::Stranger,
        Self::TooMany,
        Self::Forged,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Elsewhere => "elsewhere",
            Self::WrongTime => "wrong_time",
            Self::Stranger => "stranger",
            Self::TooMany => "too_many",
            Self::Forged => "forged",
        }
    }
}

/// Answers probes.
#[derive(Debug)]
pub(crate) struct Answerer {
    key: NodeKey,
    public: PublicKey,
    peers: Arc<Peers>,
    /// Addresses that the cluster knows this node by; some may be a NAT's before it.
    node_addresses: Vec<IpAddr>,
    sources: BTreeMap<IpAddr, Source>,
    strangers: Allowance,
    known: Allowance,
}

#[derive(Debug)]
struct Source {
    as_stranger: Allowance,
    as_peer: Allowance,
    /// When it last proved to be a peer.
    proved: Option<Instant>,
}

impl Answerer {
    pub(crate) fn new(key: NodeKey, now: Instant) -> Self {
        Self {
            public: key.public(),
            key,
            peers: Arc::default(),
            node_addresses: Vec::new(),
            sources: BTreeMap::new(),
            strangers: Allowance::new(STRANGERS, STRANGERS, now),
            known: Allowance::new(PEERS, PEERS, now),
        }
    }

    /// From now on these are believed.
    pub(crate) fn believe(&mut self, peers: Arc<Peers>) {
        self.peers = peers;
    }

    /// From now on the cluster knows this node by these.
    pub(crate) fn known_by(&mut self, node_addresses: Vec<IpAddr>) {
        self.node_addresses = node_addresses;
    }

    /// The answer to a datagram that came `from` somebody to this node's address `local`.
    /// `unix` is the time in seconds since 1970.
    pub(crate) fn answer(
        &mut self,
        datagram: &[u8],
        from: IpAddr,
        local: SocketAddr,
        now: Instant,
        unix: u64,
    ) -> Result<[u8; ProbeAnswer::LENGTH], Refused> {
        let bytes: &[u8; Probe::LENGTH] = datagram.try_into().map_err(|_| Refused::Malformed)?;
        let (probe, signature) = Probe::decode(bytes).map_err(|_| Refused::Malformed)?;
        if probe.to != self.public || !self.is_asked_at(probe.address, local) {
            return Err(Refused::Elsewhere);
        }
        if probe.sent_at.abs_diff(unix) > CLOCKS_DIFFER.as_secs() {
            return Err(Refused::WrongTime);
        }
        if self.peers.with_key(&probe.from).is_none() {
            return Err(Refused::Stranger);
        }
        if !self.may(from, now) {
            return Err(Refused::TooMany);
        }
        if !is_signed_by(&probe.from, &probe.to_sign(), &signature) {
            return Err(Refused::Forged);
        }
        if let Some(source) = self.sources.get_mut(&from) {
            source.proved = Some(now);
        }
        let answer = ProbeAnswer {
            nonce: probe.nonce,
            signature: self.key.sign(&ProbeAnswer::to_sign(bytes)),
        };
        Ok(answer.encode())
    }

    /// Whether a probe for `address` may have come to `local` on its own. A stranger that has
    /// the same address elsewhere could pass on to us what it was asked; not so that it arrives
    /// at that very address, unless it reaches that, too. Only what is before a NAT arrives at
    /// another.
    fn is_asked_at(&self, address: SocketAddr, local: SocketAddr) -> bool {
        let of_node = |ip: IpAddr| self.node_addresses.contains(&ip);
        address.port() == local.port()
            && (address.ip() == local.ip() || of_node(address.ip()) && of_node(local.ip()))
    }

    fn may(&mut self, from: IpAddr, now: Instant) -> bool {
        if !self.sources.contains_key(&from) && self.sources.len() >= SOURCES {
            self.sources
                .retain(|_, source| !source.as_stranger.is_full(now) || source.is_known(now));
            if self.sources.len() >= SOURCES {
                return false;
            }
        }
        let source = self.sources.entry(from).or_insert_with(|| Source {
            as_stranger: Allowance::new(PER_STRANGER, PER_STRANGER, now),
            as_peer: Allowance::new(PER_PEER, PER_PEER, now),
            proved: None,
        });
        // A flood of strangers shall not keep peers out.
        if source.is_known(now) {
            source.as_peer.take(now) && self.known.take(now)
        } else {
            source.as_stranger.take(now) && self.strangers.take(now)
        }
    }
}

impl Source {
    fn is_known(&self, now: Instant) -> bool {
        self.proved
            .is_some_and(|at| now.saturating_duration_since(at) < KNOWN_FOR)
    }
}

#[cfg(test)]
#[path = "answerer_tests.rs"]
mod tests;

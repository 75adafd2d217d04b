//! How peers are reached, for people to look at.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use edgemesh_catalog::NodeName;
use ipnet::IpNet;

use crate::prober::{PeerTracks, Prober};
use crate::track::Standing;

/// How one peer is reached, by its own proofs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReach {
    /// Its node.
    pub node: NodeName,
    /// What was found out at each of its addresses, sorted by address.
    pub addresses: Vec<AddressReach>,
}

/// What was found out at one address of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressReach {
    /// The address.
    pub address: IpAddr,
    /// The networks that are reached as it is.
    pub networks: Vec<IpNet>,
    /// Whether it is reached without the tunnel.
    pub finding: Finding,
    /// For how long that has been so.
    pub lasts: Duration,
}

/// Whether an address is reached without the tunnel, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It proves its key again and again.
    Direct {
        /// The last round trip.
        round_trip: Duration,
        /// Probes since then that nobody answered.
        losses: u32,
    },
    /// It proves its key, but was lost lately, or has not done so often enough.
    Held,
    /// Nobody answers.
    NoAnswer {
        /// Probes in a row.
        losses: u32,
    },
    /// It was not asked yet, or the first answer is to come.
    Unknown,
}

impl PeerReach {
    /// Whether any of its addresses is reached without the tunnel.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        let mut all = self.addresses.iter();
        all.any(|of| matches!(of.finding, Finding::Direct { .. }))
    }
}

pub(crate) fn report(prober: &Prober, now: Instant) -> Vec<PeerReach> {
    prober
        .peers()
        .map(|(node, peer)| PeerReach {
            node: node.clone(),
            addresses: addresses(peer, now),
        })
        .collect()
}

fn addresses(peer: &PeerTracks, now: Instant) -> Vec<AddressReach> {
    let tracks = peer.tracks.iter();
    tracks
        .map(|(ip, track)| AddressReach {
            address: *ip,
            networks: peer
                .places
                .places
                .get(ip)
                .map_or_else(Vec::new, |networks| networks.to_vec()),
            finding: match track.standing() {
                Standing::Direct { losses, round_trip } => Finding::Direct { round_trip, losses },
                Standing::Unproved { proofs, .. } if proofs > 0 => Finding::Held,
                Standing::Unproved { losses, .. } if losses > 0 => Finding::NoAnswer { losses },
                Standing::Unproved { .. } if track.is_held(now) => Finding::Held,
                Standing::Unproved { .. } => Finding::Unknown,
            },
            lasts: now.saturating_duration_since(track.since()),
        })
        .collect()
}

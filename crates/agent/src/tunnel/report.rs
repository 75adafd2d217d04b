//! How the tunnel fares, as a part of `edgemesh-agent status`.

use edgemesh_catalog::PublicKey;
use edgemesh_reach::{Finding, PeerReach, Reach};
use edgemesh_tunnel::{LinkStatus, Path, PeerStatus, RefusedPeer, Tunnel};
use edgemesh_watch::Publication;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::figures::way;

/// As many peers are named one by one.
const MOST_NAMED: usize = 100;

/// Sees the tunnel, and changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct TunnelObserver {
    pub(super) tunnel: Tunnel,
    pub(super) key: PublicKey,
    pub(super) publication: watch::Receiver<Publication>,
    pub(super) reach: Reach,
}

/// The tunnel at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TunnelReport {
    /// This node's public key, as its MeshNode shows it.
    pub(crate) public_key: String,
    /// Where it listens (UDP).
    pub(crate) listening: Vec<String>,
    /// Why this node's MeshNode cannot be written now; none while it can.
    pub(crate) unpublished: Option<String>,
    /// Nodes whose MeshNode is believed.
    pub(crate) believed: usize,
    /// Peers that this node has, or had, to do with; the first hundred, sorted by name.
    pub(crate) peers: Vec<PeerReport>,
    /// How many more there are.
    pub(crate) more_peers: usize,
    /// What probes have found out about peers that have endpoints; the first hundred, direct
    /// ones first.
    #[serde(default)]
    pub(crate) reach: Vec<ReachReport>,
    /// How many peers are reached without the tunnel.
    #[serde(default)]
    pub(crate) direct: usize,
    /// How many peers are probed.
    #[serde(default)]
    pub(crate) probed: usize,
    /// MeshNodes that are not believed; the first hundred, sorted by name.
    pub(crate) refused: Vec<RefusedReport>,
    /// How many more there are.
    pub(crate) more_refused: usize,
    /// Connections and flows that this node's exit serves for others now.
    pub(crate) streams_in: u64,
    /// Connections and flows to endpoints of other nodes now.
    pub(crate) streams_out: u64,
    /// Bytes of TCP that came from peers, since the start.
    pub(crate) bytes_in: u64,
    /// Bytes of TCP that went to peers.
    pub(crate) bytes_out: u64,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerReport {
    /// Its node.
    pub(crate) node: String,
    /// Its public key.
    pub(crate) public_key: String,
    /// `direct`, `relayed`, `unsettled` (connected, no path chosen), `connecting`, `down` or
    /// `idle` (nobody wants it).
    pub(crate) way: String,
    /// The address that packets go to, or the URL of the relay.
    pub(crate) by: Option<String>,
    /// Round trip, in microseconds.
    pub(crate) round_trip_microseconds: Option<u64>,
    /// Connections and flows that go on with it, opened by either side.
    pub(crate) streams: usize,
    /// How many of these go by TCP connections of their own.
    #[serde(default)]
    pub(crate) by_tcp: usize,
}

/// What was found out at one address of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReachReport {
    /// Its node.
    pub(crate) node: String,
    /// The address that was probed.
    pub(crate) address: String,
    /// The networks that are reached as it is.
    pub(crate) networks: Vec<String>,
    /// `direct` or `tunnel`.
    pub(crate) way: String,
    /// Why.
    pub(crate) why: String,
    /// For how long, in seconds.
    pub(crate) seconds: u64,
    /// Round trip of the last proof, in microseconds.
    pub(crate) round_trip_microseconds: Option<u64>,
}

/// A MeshNode that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusedReport {
    /// Its name.
    pub(crate) node: String,
    /// The key that it claims.
    pub(crate) public_key: String,
    /// One word for why, as the Event has it.
    pub(crate) reason: String,
    /// Why, and what can be done.
    pub(crate) why: String,
}

impl TunnelObserver {
    /// The state of this moment.
    pub(crate) fn report(&self) -> TunnelReport {
        let counters = self.tunnel.counters();
        let (peers, refused) = (self.tunnel.peers(), self.tunnel.refused());
        let probed = self.reach.report();
        let mut reach: Vec<ReachReport> = probed.iter().flat_map(reached).collect();
        reach.sort_by(|a, b| (&a.way, &a.node).cmp(&(&b.way, &b.node)));
        reach.truncate(MOST_NAMED);
        TunnelReport {
            public_key: self.key.to_string(),
            listening: self
                .tunnel
                .listening_at()
                .iter()
                .map(ToString::to_string)
                .collect(),
            unpublished: self
                .publication
                .borrow()
                .trouble
                .as_ref()
                .map(ToString::to_string),
            believed: self.tunnel.known_peers(),
            direct: probed.iter().filter(|peer| peer.is_direct()).count(),
            probed: probed.len(),
            reach,
            more_peers: peers.len().saturating_sub(MOST_NAMED),
            peers: peers.iter().take(MOST_NAMED).map(peer).collect(),
            more_refused: refused.len().saturating_sub(MOST_NAMED),
            refused: refused.iter().take(MOST_NAMED).map(refusal).collect(),
            streams_in: counters.streams_in(),
            streams_out: counters.streams_out(),
            bytes_in: counters.bytes_in(),
            bytes_out: counters.bytes_out(),
        }
    }
}

fn peer(status: &PeerStatus) -> PeerReport {
    let (by, round_trip) = match &status.link {
        LinkStatus::Up { path, round_trip } => (path.as_ref(), *round_trip),
        LinkStatus::Idle | LinkStatus::Connecting | LinkStatus::Down => (None, None),
    };
    PeerReport {
        node: status.node.to_string(),
        public_key: status.key.to_string(),
        way: way(status).to_owned(),
        by: by.map(|path| match path {
            Path::Direct(address) => address.to_string(),
            Path::Relayed(url) => url.clone(),
        }),
        round_trip_microseconds: round_trip
            .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        streams: status.streams,
        by_tcp: status.by_tcp,
    }
}

fn reached(peer: &PeerReach) -> impl Iterator<Item = ReachReport> {
    peer.addresses.iter().map(|of| {
        let (way, why, round_trip) = match of.finding {
            Finding::Direct { round_trip, losses } => {
                let why = match losses {
                    0 => "it proves its key there, without the tunnel".to_owned(),
                    n => format!("it proved its key there; {n} probes since are unanswered"),
                };
                ("direct", why, Some(round_trip))
            }
            Finding::Held => (
                "tunnel",
                "it answers with proof again, but must do so for a while".to_owned(),
                None,
            ),
            Finding::NoAnswer { losses } => (
                "tunnel",
                format!("no answer with its proof to {losses} probes"),
                None,
            ),
            Finding::Unknown => ("tunnel", "no answer yet".to_owned(), None),
        };
        ReachReport {
            node: peer.node.to_string(),
            address: of.address.to_string(),
            networks: of.networks.iter().map(ToString::to_string).collect(),
            way: way.to_owned(),
            why,
            seconds: of.lasts.as_secs(),
            round_trip_microseconds: round_trip
                .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
    })
}

fn refusal(refused: &RefusedPeer) -> RefusedReport {
    RefusedReport {
        node: refused.node.to_string(),
        public_key: refused.key.to_string(),
        reason: refused.reason.word().to_owned(),
        why: refused.reason.to_string(),
    }
}

//! How things stand with a peer, for people to look at.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use edgemesh_catalog::{NodeName, PublicKey};
use iroh::TransportAddr;

use crate::link::{Link, State};
use crate::relay_address::RelayAddress;
use crate::relay_detours::RelayDetours;

/// How things stand with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its node.
    pub node: NodeName,
    /// Its key.
    pub key: PublicKey,
    /// Whether there is a way to it.
    pub link: LinkStatus,
    /// Streams that go on with it, opened by either side.
    pub streams: usize,
    /// How many of these go by TCP connections of their own now.
    pub by_tcp: usize,
}

/// Whether there is a way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    /// Nobody wants one.
    Idle,
    /// It is being made.
    Connecting,
    /// It does not answer, and is being tried again.
    Down,
    /// It is there.
    Up {
        /// How packets go now; none in the moment when no path is chosen.
        path: Option<Path>,
        /// Round trip on that path.
        round_trip: Option<Duration>,
    },
}

/// How packets get to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// Straight to this address of its, or of the NAT before it.
    Direct(SocketAddr),
    /// Through the relay with this URL.
    Relayed(String),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "direct to {address}"),
            Self::Relayed(url) => write!(f, "relayed by {url}"),
        }
    }
}

impl PeerStatus {
    /// `detours` tell who relays in the place of a relay that is away.
    pub(crate) fn of(link: &Link, detours: &RelayDetours) -> Self {
        let mesh_node = link.mesh_node();
        let state = link.state();
        Self {
            node: mesh_node.name.clone(),
            key: mesh_node.public_key,
            streams: state.session().map_or(0, |session| session.streams()),
            by_tcp: state.session().map_or(0, |session| session.lanes.going()),
            link: match &state {
                State::Idle => LinkStatus::Idle,
                State::Connecting => LinkStatus::Connecting,
                State::Down => LinkStatus::Down,
                State::Up(session) => {
                    let paths = session.connection.paths();
                    let selected = paths.iter().find(iroh::endpoint::Path::is_selected);
                    LinkStatus::Up {
                        path: selected
                            .as_ref()
                            .and_then(|path| path_of(path.remote_addr(), detours)),
                        round_trip: selected.as_ref().map(iroh::endpoint::Path::rtt),
                    }
                }
            },
        }
    }
}

fn path_of(address: &TransportAddr, detours: &RelayDetours) -> Option<Path> {
    match address {
        TransportAddr::Ip(address) => Some(Path::Direct(*address)),
        TransportAddr::Relay(url) => {
            let stand_in = RelayAddress::of_url(url).and_then(|relay| detours.stand_in(relay));
            let by = stand_in.map_or_else(|| url.to_string(), |relay| relay.to_string());
            Some(Path::Relayed(by))
        }
        _ => None,
    }
}

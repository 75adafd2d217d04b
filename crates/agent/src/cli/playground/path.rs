//! By which kind of path two nodes reach each other.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::tunnel::PeerReport;

/// How packets of the tunnel get from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Path {
    /// Straight, where one of the two can be reached by anybody.
    Direct,
    /// Straight, although both are behind NATs that let only answers in.
    HolePunched,
    /// Through a relay node.
    Relayed,
    /// None, or one that the playground does not have; in the agent's words.
    Other(String),
}

/// What the playground knows of two nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// Whether the node that tells of the path is behind a NAT.
    pub(super) from_behind_nat: bool,
    /// The public address of the NAT that the other is behind, if it is.
    pub(super) nat_of_other: Option<Ipv4Addr>,
}

impl Path {
    /// What an agent's word of a peer means between these ends.
    pub(super) fn of(peer: &PeerReport, ends: Ends) -> Self {
        let by = peer.by.as_deref().unwrap_or_default();
        let address = by.parse::<SocketAddr>().map(|address| address.ip()).ok();
        match peer.way.as_str() {
            "relayed" => Self::Relayed,
            "direct" => match ends.nat_of_other {
                // An address that is nobody's there would be a mistake.
                Some(nat) if address != Some(nat.into()) => Self::Other(format!("direct to {by}")),
                Some(_) if ends.from_behind_nat => Self::HolePunched,
                Some(_) | None => Self::Direct,
            },
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::HolePunched => "hole-punched",
            Self::Relayed => "relayed",
            Self::Other(word) => word,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 13);

    fn path(way: &str, by: &str, from_behind_nat: bool, nat_of_other: Option<Ipv4Addr>) -> Path {
        let peer = PeerReport {
            node: "edge-2".to_owned(),
            public_key: "key".to_owned(),
            way: way.to_owned(),
            by: Some(by.to_owned()),
            round_trip_microseconds: None,
            streams: 0,
            by_tcp: 0,
        };
        let ends = Ends {
            from_behind_nat,
            nat_of_other,
        };
        Path::of(&peer, ends)
    }

    #[test]
    fn a_straight_path_between_two_nats_goes_through_a_hole() {
        let straight = |from, to| path("direct", "203.0.113.13:20006", from, to);
        assert_eq!(straight(true, Some(NAT)), Path::HolePunched);
        assert_eq!(straight(false, Some(NAT)), Path::Direct);
        assert_eq!(straight(true, None), Path::Direct);
    }

    #[test]
    fn a_straight_path_to_an_address_of_nobody_is_told_as_it_is() {
        let private = path("direct", "192.168.1.11:20006", true, Some(NAT));
        assert_eq!(private, Path::Other("direct to 192.168.1.11:20006".into()));
    }

    #[test]
    fn a_relay_is_one_wherever_the_nodes_are() {
        let relay = "http://198.51.100.11:20006/";
        assert_eq!(path("relayed", relay, true, Some(NAT)), Path::Relayed);
        assert_eq!(path("down", "", true, None), Path::Other("down".into()));
    }
}

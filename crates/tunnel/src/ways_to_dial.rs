//! Which of the ways to a peer are dialled. Pure.
//!
//! The transport sends the first packets of a connection by all ways that it is told, and
//! takes whoever answers first for the peer. A private address means another host on each
//! site: where an agent of this site has the one that the peer has on its own, it is that
//! agent (or this one) which answers, soonest of all, and with a key that is not the peer's.
//! The handshake is over then, and all further ones end alike.
//!
//! So a peer that can be met elsewhere is not dialled at private addresses. Nothing is lost by
//! it: the two tell each other all addresses once they are connected, and try them by packets
//! that only the peer itself can answer.
//!
//! The exception is a peer behind the same NAT: it has a public address in common with this
//! node, so the private ones mean the same here and there. Such two reach each other also
//! while their uplink, and with it every relay, is away.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use iroh::{EndpointAddr, TransportAddr};

use crate::own_addresses::is_private;

/// Of all ways to a peer those that can only mean that peer; where there is none, those that
/// at least do not mean this host. `own` are the addresses by which this node is known.
pub(crate) fn ways_to_dial(
    all: EndpointAddr,
    own: &[SocketAddr],
    is_own: impl Fn(IpAddr) -> bool,
) -> EndpointAddr {
    let EndpointAddr { id, addrs } = all;
    let is_shared = |way: &TransportAddr| match way {
        TransportAddr::Ip(address) => {
            !is_private(address.ip()) && own.iter().any(|own| own.ip() == address.ip())
        }
        _ => false,
    };
    let is_neighbour = addrs.iter().any(is_shared);
    let is_certain = |way: &TransportAddr| match way {
        TransportAddr::Ip(address) => !is_private(address.ip()),
        TransportAddr::Relay(_) => true,
        _ => false,
    };
    let leads_elsewhere = |way: &TransportAddr| match way {
        TransportAddr::Ip(address) => !is_own(address.ip()),
        _ => true,
    };
    let elsewhere = addrs.into_iter().filter(leads_elsewhere);
    let (certain, others): (Vec<_>, Vec<_>) = elsewhere.partition(is_certain);
    let use_others = is_neighbour || certain.is_empty();
    let ways = certain
        .into_iter()
        .chain(others.into_iter().filter(|_| use_others));
    EndpointAddr::from_parts(id, ways)
}

/// Whether this node itself is found at an address. `listening` is where its sockets are.
pub(crate) fn is_own(ip: IpAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|at| match at.ip() {
        all if all.is_unspecified() => is_of_this_host(ip),
        one => one == ip,
    })
}

/// Whether an address is one of this host's: only there a socket can be bound to it.
pub(crate) fn is_of_this_host(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    const RELAY: &str = "http://198.51.100.11:20006/";

    fn dialled(ways: &[&str], own: &[&str]) -> Vec<String> {
        dialled_from(&[], ways, own)
    }

    fn dialled_from(known_as: &[&str], ways: &[&str], own: &[&str]) -> Vec<String> {
        let way = |text: &&str| match text.parse() {
            Ok(address) => TransportAddr::Ip(address),
            Err(_) => TransportAddr::Relay(text.parse().unwrap()),
        };
        let id = SecretKey::from_bytes(&[1; 32]).public();
        let all = EndpointAddr::from_parts(id, ways.iter().map(way));
        let own: Vec<IpAddr> = own.iter().map(|ip| ip.parse().unwrap()).collect();
        let known_as: Vec<SocketAddr> = known_as.iter().map(|at| at.parse().unwrap()).collect();
        let chosen = ways_to_dial(all, &known_as, |ip| own.contains(&ip));
        let text = |way: TransportAddr| match way {
            TransportAddr::Ip(address) => address.to_string(),
            TransportAddr::Relay(url) => url.to_string(),
            other => panic!("{other:?}"),
        };
        let mut chosen: Vec<_> = chosen.addrs.into_iter().map(text).collect();
        chosen.sort();
        chosen
    }

    #[test]
    fn private_addresses_are_not_dialled_where_the_peer_can_be_met_elsewhere() {
        let private = ["192.168.1.11:20006", "[fd00:1::11]:20006", "100.64.0.1:1"];
        let public = "203.0.113.5:20006";
        assert_eq!(dialled(&[&private[..], &[RELAY]].concat(), &[]), [RELAY]);
        assert_eq!(dialled(&[&private[..], &[public]].concat(), &[]), [public]);
        assert_eq!(dialled(&[public, RELAY], &[]), [public, RELAY]);
    }

    #[test]
    fn private_addresses_are_dialled_where_there_are_no_others_but_never_this_hosts() {
        let ways = ["192.168.1.11:20006", "192.168.7.2:20006"];
        assert_eq!(dialled(&ways, &["192.168.1.11"]), ["192.168.7.2:20006"]);
        assert_eq!(dialled(&ways[..1], &["192.168.1.11"]), [""; 0]);
    }

    #[test]
    fn private_addresses_are_dialled_behind_the_same_nat() {
        let ways = ["192.168.1.12:20006", "203.0.113.5:40001", RELAY];
        let known_as = ["192.168.1.11:20006", "203.0.113.5:20006"];
        assert_eq!(dialled_from(&known_as, &ways, &["192.168.1.11"]), ways);
        let elsewhere = ["192.168.1.11:20006", "203.0.113.6:20006"];
        assert_eq!(dialled_from(&elsewhere, &ways, &[]), ways[1..]);
        // A private address in common says nothing.
        let same = ["192.168.1.12:20006", "203.0.113.6:20006"];
        assert_eq!(dialled_from(&same, &ways, &[]), ways[1..]);
    }

    #[test]
    fn an_address_of_this_host_is_told_from_others() {
        assert!(is_of_this_host("127.0.0.1".parse().unwrap()));
        assert!(!is_of_this_host("192.0.2.1".parse().unwrap()));
        let is_own = |ip: &str, at: &str| is_own(ip.parse().unwrap(), &[at.parse().unwrap()]);
        assert!(is_own("127.0.0.1", "0.0.0.0:20006"));
        assert!(is_own("127.0.0.1", "127.0.0.1:20006"));
        assert!(!is_own("127.0.0.2", "127.0.0.1:20006"));
    }
}

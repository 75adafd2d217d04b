//! Where a peer is dialled for a lane. Pure.

use std::net::SocketAddr;

use crate::own_addresses::is_private;

/// Addresses that are tried for one lane.
const MOST: usize = 3;

/// Of a peer's addresses, whose TCP ports have the numbers of its UDP ports, as its MeshNode
/// names them: first the one by which it is connected with now, unless that is a NAT's, then
/// public ones. At private ones somebody else may be, and is not to be bothered.
pub(super) fn addresses(connected_at: Option<SocketAddr>, named: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut chosen = Vec::with_capacity(MOST);
    let connected_at = connected_at.filter(|at| named.contains(at));
    let public = named.iter().copied().filter(|at| !is_private(at.ip()));
    for address in connected_at.into_iter().chain(public) {
        if chosen.len() < MOST && !chosen.contains(&address) {
            chosen.push(address);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(connected_at: Option<&str>, named: &[&str]) -> Vec<String> {
        let named: Vec<_> = named.iter().map(|text| text.parse().unwrap()).collect();
        let at = connected_at.map(|text| text.parse().unwrap());
        let chosen = addresses(at, &named);
        chosen.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn where_the_peer_is_connected_it_is_dialled_first() {
        let [lan, public] = ["192.168.1.2:20006", "203.0.113.5:20006"];
        assert_eq!(chosen(Some(lan), &[public, lan]), [lan, public]);
        assert_eq!(chosen(None, &[public, lan]), [public]);
        assert_eq!(chosen(Some(public), &[public, lan]), [public]);
    }

    #[test]
    fn the_port_that_a_nat_gave_is_not_dialled() {
        let mapped = "203.0.113.5:41234";
        assert_eq!(chosen(Some(mapped), &["192.168.1.2:20006"]), [""; 0]);
    }

    #[test]
    fn few_are_tried() {
        let many: Vec<_> = (1..9).map(|n| format!("203.0.113.{n}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(chosen(None, &many), many[..MOST]);
    }
}

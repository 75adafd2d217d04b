//! Where a peer is dialled for a lane. Pure.

use std::net::SocketAddr;

/// Addresses that are tried for one lane.
const MOST: usize = 3;

/// Of a peer's addresses, whose TCP ports have the numbers of its UDP ports: first the one by
/// which it is connected with now, unless that is a NAT's, then those that can only mean it.
/// `named` are those that its MeshNode names, `certain` those of them that may be dialled by
/// somebody who does not know yet who answers there.
pub(super) fn addresses(
    connected_at: Option<SocketAddr>,
    named: &[SocketAddr],
    certain: impl IntoIterator<Item = SocketAddr>,
) -> Vec<SocketAddr> {
    let mut chosen = Vec::with_capacity(MOST);
    let connected_at = connected_at.filter(|at| named.contains(at));
    for address in connected_at.into_iter().chain(certain) {
        if chosen.len() < MOST && !chosen.contains(&address) {
            chosen.push(address);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(connected_at: Option<&str>, named: &[&str], certain: &[&str]) -> Vec<String> {
        let all = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let at = connected_at.map(|text| text.parse().unwrap());
        let chosen = addresses(at, &all(named), all(certain));
        chosen.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn where_the_peer_is_connected_it_is_dialled_first() {
        let [lan, public] = ["192.168.1.2:20006", "203.0.113.5:20006"];
        assert_eq!(chosen(Some(lan), &[public, lan], &[public]), [lan, public]);
        assert_eq!(chosen(None, &[public, lan], &[public]), [public]);
        assert_eq!(chosen(Some(public), &[public], &[public]), [public]);
    }

    #[test]
    fn the_port_that_a_nat_gave_is_not_dialled() {
        let mapped = "203.0.113.5:41234";
        assert_eq!(chosen(Some(mapped), &["192.168.1.2:20006"], &[]), [""; 0]);
    }

    #[test]
    fn few_are_tried() {
        let many: Vec<_> = (1..9).map(|n| format!("203.0.113.{n}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(chosen(None, &many, &many), many[..MOST]);
    }
}

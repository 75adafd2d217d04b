//! Who has which ports of this network namespace, as `/proc/net/tcp` and `udp` have it. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a listening socket (`TCP_LISTEN`, kernel `include/net/tcp_states.h`).
const LISTENING: &str = "0A";

/// A UDP socket without a peer (`TCP_CLOSE`, the same file): whatever comes to its port is its.
const UNCONNECTED: &str = "07";

/// How a port is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// By a TCP socket that listens.
    TcpListening,
    /// By a UDP socket that takes datagrams of anybody.
    Udp,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::TcpListening => "tcp",
            Bound::Udp => "udp",
        })
    }
}

/// The addresses that are listened on, from the text of `/proc/net/tcp` or `tcp6`.
pub(super) fn listeners(text: &str) -> Vec<SocketAddr> {
    bound(text, Bound::TcpListening)
}

/// The addresses that are taken in that way, from the text of the protocol's file.
pub(super) fn bound(text: &str, how: Bound) -> Vec<SocketAddr> {
    let wanted = match how {
        Bound::TcpListening => LISTENING,
        Bound::Udp => UNCONNECTED,
    };
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let local = words.nth(1)?;
            let state = words.nth(1)?;
            (state == wanted).then(|| address(local)).flatten()
        })
        .collect()
}

/// Whether one of `listeners` keeps others from listening on `wanted`.
pub(super) fn is_taken(wanted: SocketAddr, listeners: &[SocketAddr]) -> bool {
    listeners.iter().any(|taken| {
        let everywhere = match taken.ip() {
            // A wildcard IPv6 socket usually takes IPv4 as well.
            IpAddr::V6(v6) if v6.is_unspecified() => true,
            ip => ip.is_unspecified() && wanted.is_ipv4(),
        };
        taken.port() == wanted.port() && (everywhere || taken.ip() == wanted.ip())
    })
}

/// `0100007F:1F90`: words of four bytes in the host's own order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect::<Option<Vec<u32>>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_and_keeps_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let found = listeners(&std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        assert!(found.contains(&at), "{found:?}");
        assert!(is_taken(at, &found));
        drop(listener);
    }

    #[test]
    fn a_listener_everywhere_takes_every_address() {
        let wanted = |text: &str| text.parse::<SocketAddr>().unwrap();
        let all_v6 = [wanted("[::]:80")];
        let all_v4 = [wanted("0.0.0.0:80")];
        assert!(is_taken(wanted("10.0.0.1:80"), &all_v6));
        assert!(is_taken(wanted("10.0.0.1:80"), &all_v4));
        assert!(!is_taken(wanted("[fd00::1]:80"), &all_v4));
        assert!(!is_taken(wanted("10.0.0.1:81"), &all_v4));
    }

    #[test]
    fn connections_and_nonsense_are_no_listeners() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 0100007F:C350 01 0\n\
                    1: zz 00000000:0000 0A\n";
        assert!(listeners(text).is_empty());
    }
}

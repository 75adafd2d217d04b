//! What the transport asks the dialer of relays for: the head of an HTTP proxy request. Pure.

use std::net::SocketAddr;

use crate::relay_address::RelayAddress;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayRequest {
    /// A connection with a relay (`CONNECT`, RFC 9110 section 9.3.6).
    Line(RelayAddress),
    /// An answer of just this relay, to measure how far it is (`GET` with the whole URL,
    /// RFC 9112 section 3.2.2).
    Probe(RelayAddress),
}

impl RelayRequest {
    /// Reads a request's head; none when it is no request for a relay.
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        let line = head.split(|byte| *byte == b'\r').next()?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        match (words.next()?, words.next()?, words.next()?) {
            ("CONNECT", target, "HTTP/1.1") => address(target).map(Self::Line),
            ("GET", target, "HTTP/1.1") => {
                let rest = target.strip_prefix("http://")?;
                address(rest.split('/').next()?).map(Self::Probe)
            }
            _ => None,
        }
    }
}

/// A URL leaves out the port that is usual for HTTP.
fn address(text: &str) -> Option<RelayAddress> {
    let with_port = text.parse().ok();
    let without = || {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        Some(SocketAddr::new(bare.unwrap_or(text).parse().ok()?, 80))
    };
    let address: Option<SocketAddr> = with_port.or_else(without);
    address.and_then(RelayAddress::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(text: &str) -> RelayAddress {
        text.parse().unwrap()
    }

    #[test]
    fn lines_and_probes_are_told_apart() {
        let parse = |head: &str| RelayRequest::parse(head.as_bytes());
        assert_eq!(
            parse("CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"),
            Some(RelayRequest::Line(relay("192.0.2.1:443")))
        );
        assert_eq!(
            parse("CONNECT [2001:db8::1]:20006 HTTP/1.1\r\n\r\n"),
            Some(RelayRequest::Line(relay("2001:db8::1")))
        );
        assert_eq!(
            parse("GET http://192.0.2.1:20006/ping HTTP/1.1\r\n\r\n"),
            Some(RelayRequest::Probe(relay("192.0.2.1")))
        );
        assert_eq!(
            parse("GET http://[2001:db8::1]/ping HTTP/1.1\r\n\r\n"),
            Some(RelayRequest::Probe(relay("[2001:db8::1]:80")))
        );
    }

    #[test]
    fn nothing_else_is_dialled() {
        for head in [
            "",
            "CONNECT",
            "CONNECT relay.example:443 HTTP/1.1\r\n\r\n",
            "CONNECT 0.0.0.0:443 HTTP/1.1\r\n\r\n",
            "GET /ping HTTP/1.1\r\n\r\n",
            "GET https://192.0.2.1/ping HTTP/1.1\r\n\r\n",
            "POST http://192.0.2.1/ HTTP/1.1\r\n\r\n",
            "\u{0}\r\n\r\n",
        ] {
            assert_eq!(RelayRequest::parse(head.as_bytes()), None, "{head:?}");
        }
    }
}

//! Where a relay is: an address and a TCP port, spoken to by plain HTTP.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use iroh::RelayUrl;

use crate::relay_server::RELAY_PORT;

/// An address by which a relay is reached. Its text is `ADDRESS` or `ADDRESS:PORT`, with
/// brackets around an IPv6 address that has a port; the port is 20006 when it is not said.
///
/// There are no names: relays are what a node finds others by when all else fails, and a
/// name would have to be asked for, outside the cluster perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayAddress(SocketAddr);

/// A text that is no address of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotARelayAddress {
    text: String,
}

impl RelayAddress {
    /// The relay at that address. None for an address that nobody can connect to.
    #[must_use]
    pub fn new(address: SocketAddr) -> Option<Self> {
        let ip = address.ip().to_canonical();
        let usable = !ip.is_unspecified() && !ip.is_multicast() && address.port() != 0;
        usable.then_some(Self(SocketAddr::new(ip, address.port())))
    }

    /// The relay of a URL; none when the URL has a name or isn't plain HTTP.
    pub(crate) fn of_url(url: &RelayUrl) -> Option<Self> {
        let host = url.host_str()?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let ip: IpAddr = bare.unwrap_or(host).parse().ok()?;
        let port = url.port_or_known_default()?;
        (url.scheme() == "http")
            .then_some(SocketAddr::new(ip, port))
            .and_then(Self::new)
    }

    /// Its URL, by which the transport knows it.
    pub(crate) fn url(&self) -> Option<RelayUrl> {
        self.to_string().parse().ok()
    }

    /// Address and port.
    #[must_use]
    pub const fn socket_addr(&self) -> SocketAddr {
        self.0
    }

    /// Whether the address means another host to each that uses it. Nobody but an
    /// administrator may send a node there.
    pub(crate) fn is_local(&self) -> bool {
        match self.0.ip() {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
        }
    }
}

/// As a URL.
impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}/", self.0)
    }
}

impl fmt::Display for NotARelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no address of a relay; write an IP address, or one with a port, as \
             192.0.2.1:443 or [2001:db8::1]:443",
            self.text
        )
    }
}

impl std::error::Error for NotARelayAddress {}

impl FromStr for RelayAddress {
    type Err = NotARelayAddress;

    fn from_str(text: &str) -> Result<Self, NotARelayAddress> {
        let with_port = text.parse().ok();
        let without = || Some(SocketAddr::new(text.parse().ok()?, RELAY_PORT));
        let address: Option<SocketAddr> = with_port.or_else(without);
        address.and_then(Self::new).ok_or_else(|| NotARelayAddress {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_read_with_and_without_a_port() {
        let read = |text: &str| text.parse::<RelayAddress>().unwrap().to_string();
        assert_eq!(read("192.0.2.1"), "http://192.0.2.1:20006/");
        assert_eq!(read("192.0.2.1:443"), "http://192.0.2.1:443/");
        assert_eq!(read("2001:db8::1"), "http://[2001:db8::1]:20006/");
        assert_eq!(read("[2001:db8::1]:443"), "http://[2001:db8::1]:443/");
    }

    #[test]
    fn what_nobody_can_connect_to_is_no_address() {
        let texts = [
            "",
            "relay.example",
            "0.0.0.0",
            "::",
            "192.0.2.1:0",
            "224.0.0.1",
        ];
        for text in texts {
            assert!(text.parse::<RelayAddress>().is_err(), "{text}");
        }
        let error = "relay.example".parse::<RelayAddress>().unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:443"), "{error}");
    }

    #[test]
    fn url_and_address_are_one_and_the_same() {
        for text in ["192.0.2.1", "192.0.2.1:80", "[2001:db8::1]:443"] {
            let address: RelayAddress = text.parse().unwrap();
            let url = address.url().unwrap();
            assert_eq!(RelayAddress::of_url(&url), Some(address), "{text}");
        }
    }

    #[test]
    fn other_urls_are_no_address() {
        for text in [
            "https://192.0.2.1/",
            "http://relay.example/",
            "ftp://192.0.2.1/",
        ] {
            let url: RelayUrl = text.parse().unwrap();
            assert_eq!(RelayAddress::of_url(&url), None, "{text}");
        }
    }
}

//! The values that mean something to the agent: addresses, files, durations, marks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use edgemesh_yaml::{Kind, Node};

use super::duration;
use super::values::{Scalar, Whole, quoted, text, whole};

/// A port to listen at.
pub(super) const PORT: Whole<u16> = Whole {
    what: "a port",
    least: 1,
    most: u16::MAX,
};

/// A number of something, as EdgeMesh takes it.
pub(super) const COUNT: Whole<i32> = Whole {
    what: "a number",
    least: 0,
    most: i32::MAX,
};

/// A time as EdgeMesh takes it.
pub(super) const SECONDS: Whole<i32> = Whole {
    what: "a number of seconds",
    least: 0,
    most: i32::MAX,
};

/// A duration with its bounds, both included.
pub(super) struct Span {
    pub(super) least: Duration,
    pub(super) most: Duration,
}

impl Scalar for Span {
    type Value = Duration;

    fn accepts(&self) -> String {
        let (least, most) = (duration::show(self.least), duration::show(self.most));
        format!("a duration with its unit (h, m, s or ms), {least} to {most}")
    }

    fn take(&self, node: &Node<'_>) -> Option<Duration> {
        let Kind::String(text) = node.kind() else {
            return None;
        };
        duration::parse(text).filter(|value| (self.least..=self.most).contains(value))
    }

    fn show(&self, value: &Duration) -> String {
        duration::show(*value)
    }
}

/// The address of an HTTP server.
pub(super) struct Url;

impl Url {
    const ACCEPTS: &str = "an address like https://10.0.0.1:6443, without user and password";

    fn check(text: &str) -> Option<()> {
        // Without a scheme the client guesses it, as client-go does.
        let scheme = ["https://", "http://"]
            .iter()
            .find(|scheme| text.starts_with(**scheme));
        let rest = &text[scheme.map_or(0, |scheme| scheme.len())..];
        if rest.contains("://") {
            return None;
        }
        let authority = rest.split(['/', '?', '#']).next()?;
        // A password here would be shown with the effective configuration.
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '@' || c == '\\';
        if authority.is_empty() || text.contains(forbidden) {
            return None;
        }
        let after_host = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                after
            }
            None => &authority[authority.find(':').unwrap_or(authority.len())..],
        };
        if authority.starts_with(':') {
            return None;
        }
        match after_host.strip_prefix(':') {
            Some(port) => port
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .map(|_| ()),
            None => after_host.is_empty().then_some(()),
        }
    }
}

impl Scalar for Url {
    type Value = String;

    fn accepts(&self) -> String {
        Self::ACCEPTS.to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<String> {
        let text = text(node)?;
        Self::check(&text).map(|()| text)
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}

/// The path of a file from the root.
pub(super) struct AbsolutePath;

impl Scalar for AbsolutePath {
    type Value = PathBuf;

    fn accepts(&self) -> String {
        "the path of a file, beginning with /".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<PathBuf> {
        text(node)
            .filter(|text| text.starts_with('/'))
            .map(PathBuf::from)
    }

    fn show(&self, value: &PathBuf) -> String {
        quoted(&value.to_string_lossy())
    }
}

/// Such a value, or "" for none.
pub(super) struct OrNone<S>(pub(super) S);

impl<S: Scalar> Scalar for OrNone<S> {
    type Value = Option<S::Value>;

    fn accepts(&self) -> String {
        format!("{}, or \"\" for none", Scalar::accepts(&self.0))
    }

    fn take(&self, node: &Node<'_>) -> Option<Option<S::Value>> {
        match node.kind() {
            Kind::String("") => Some(None),
            Kind::String(_)
            | Kind::Number(_)
            | Kind::Bool(_)
            | Kind::Null
            | Kind::Sequence
            | Kind::Mapping => self.0.take(node).map(Some),
        }
    }

    fn show(&self, value: &Option<S::Value>) -> String {
        match value {
            Some(value) => Scalar::show(&self.0, value),
            None => "\"\"".to_owned(),
        }
    }
}

/// An IPv4 address that may be put on `lo` as our own.
pub(super) struct InterceptV4;

impl Scalar for InterceptV4 {
    type Value = Ipv4Addr;

    fn accepts(&self) -> String {
        "an IPv4 address for this agent alone, not in 0.0.0.0/8 or 127.0.0.0/8".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<Ipv4Addr> {
        let address: Ipv4Addr = text(node)?.parse().ok()?;
        let [first, ..] = address.octets();
        (first != 0 && first != 127 && first < 224).then_some(address)
    }

    fn show(&self, value: &Ipv4Addr) -> String {
        quoted(&value.to_string())
    }
}

/// An IPv6 address that may be put on `lo` as our own.
pub(super) struct InterceptV6;

impl Scalar for InterceptV6 {
    type Value = Ipv6Addr;

    fn accepts(&self) -> String {
        "an IPv6 address for this agent alone, best of fd00::/8, not link-local or ::1".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<Ipv6Addr> {
        let address: Ipv6Addr = text(node)?.parse().ok()?;
        let unusable = address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_unicast_link_local()
            || address.to_ipv4_mapped().is_some();
        (!unusable).then_some(address)
    }

    fn show(&self, value: &Ipv6Addr) -> String {
        quoted(&value.to_string())
    }
}

/// Where to listen: an address and a port.
pub(super) struct Listen;

impl Scalar for Listen {
    type Value = SocketAddr;

    fn accepts(&self) -> String {
        "an IP address and a port, as 127.0.0.1:20008 or [::1]:20008".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<SocketAddr> {
        text(node)?.parse().ok()
    }

    fn show(&self, value: &SocketAddr) -> String {
        quoted(&value.to_string())
    }
}

/// A firewall mark of one bit that kube-proxy doesn't use.
pub(super) struct MarkBit;

impl MarkBit {
    /// kube-proxy's mark for packets to drop (`KUBE-MARK-DROP`) and to masquerade
    /// (`--iptables-masquerade-bit` is 14 by default).
    const OF_KUBE_PROXY: u32 = 0x8000 | 0x4000;
}

impl Scalar for MarkBit {
    type Value = u32;

    fn accepts(&self) -> String {
        "a mark of a single bit, as 0x2000, but not kube-proxy's 0x4000 or 0x8000".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<u32> {
        let mark = u32::try_from(whole(node)?).ok()?;
        (mark.is_power_of_two() && mark & Self::OF_KUBE_PROXY == 0).then_some(mark)
    }

    fn show(&self, value: &u32) -> String {
        format!("{value:#x}")
    }
}

/// An upper limit, where 0 leaves it to the agent.
pub(super) struct Limit {
    pub(super) most: i64,
}

impl Scalar for Limit {
    type Value = Option<usize>;

    fn accepts(&self) -> String {
        format!("a number, 0 to {}", self.most)
    }

    fn take(&self, node: &Node<'_>) -> Option<Option<usize>> {
        let limit = whole(node).filter(|limit| (0..=self.most).contains(limit))?;
        let limit = usize::try_from(limit).ok()?;
        Some((limit > 0).then_some(limit))
    }

    fn show(&self, value: &Option<usize>) -> String {
        value.unwrap_or(0).to_string()
    }
}

/// A range of addresses.
pub(super) struct Cidr;

impl Scalar for Cidr {
    type Value = String;

    fn accepts(&self) -> String {
        "a range of addresses like 10.244.0.0/16".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<String> {
        let text = text(node)?;
        let (address, prefix) = text.split_once('/')?;
        let most = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= most).then_some(text)
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}

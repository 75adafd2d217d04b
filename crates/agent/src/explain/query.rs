//! What `explain` is asked about. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Service by name or by ClusterIP, or one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Query {
    /// `[namespace/]service[:port]`.
    Name {
        /// Any namespace if not given.
        namespace: Option<String>,
        /// The Service.
        service: String,
        /// Name or number of a port; all if not given.
        port: Option<String>,
    },
    /// A ClusterIP with or without a port.
    Address {
        /// The ClusterIP.
        ip: IpAddr,
        /// All if not given.
        port: Option<u16>,
    },
}

/// Something that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no Service: write [namespace/]service[:port], a ClusterIP, or ClusterIP:port, \
     for example default/web:http, 10.96.0.1:443 or [fd00::1]:443"
)]
pub(crate) struct NoQuery(String);

impl FromStr for Query {
    type Err = NoQuery;

    fn from_str(text: &str) -> Result<Self, NoQuery> {
        if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address { ip, port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address {
                ip: address.ip(),
                port: Some(address.port()),
            });
        }
        let wrong = || NoQuery(text.to_owned());
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(part(port).ok_or_else(wrong)?)),
            None => (text, None),
        };
        let (namespace, service) = match name.split_once('/') {
            Some((namespace, service)) => (Some(part(namespace).ok_or_else(wrong)?), service),
            None => (None, name),
        };
        Ok(Self::Name {
            namespace,
            service: part(service).ok_or_else(wrong)?,
            port,
        })
    }
}

/// A part of a name: letters, digits, '-' and '.', in any case, for it may be mistyped.
fn part(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (!text.is_empty() && text.len() <= 253 && text.chars().all(plain)).then(|| text.to_owned())
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Query::Name {
                namespace,
                service,
                port,
            } => {
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}/")?;
                }
                f.write_str(service)?;
                port.as_ref().map_or(Ok(()), |port| write!(f, ":{port}"))
            }
            Query::Address { ip, port: None } => ip.fmt(f),
            Query::Address {
                ip,
                port: Some(port),
            } => SocketAddr::new(*ip, *port).fmt(f),
        }
    }
}

impl Query {
    /// Whether a port of that name and number is meant.
    pub(crate) fn means_port(&self, name: &str, number: u16) -> bool {
        match self {
            Query::Name { port: None, .. } | Query::Address { port: None, .. } => true,
            Query::Name {
                port: Some(wanted), ..
            } => wanted == name || wanted.parse() == Ok(number),
            Query::Address {
                port: Some(wanted), ..
            } => *wanted == number,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Query {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        let name = |namespace: Option<&str>, service: &str, port: Option<&str>| Query::Name {
            namespace: namespace.map(str::to_owned),
            service: service.to_owned(),
            port: port.map(str::to_owned),
        };
        let address = |ip: &str, port| Query::Address {
            ip: ip.parse().unwrap(),
            port,
        };
        for (text, wanted) in [
            ("web", name(None, "web", None)),
            (
                "default/web:http",
                name(Some("default"), "web", Some("http")),
            ),
            ("web:80", name(None, "web", Some("80"))),
            ("10.96.0.1", address("10.96.0.1", None)),
            ("10.96.0.1:443", address("10.96.0.1", Some(443))),
            ("fd00::1", address("fd00::1", None)),
            ("[fd00::1]", address("fd00::1", None)),
            ("[fd00::1]:443", address("fd00::1", Some(443))),
        ] {
            assert_eq!(parsed(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_names_nothing_is_refused_with_examples() {
        for text in [
            "", "/", "a/", "/b", "a:", ":80", "a b", "a/b/c", "a\nb", "*",
        ] {
            let error = text.parse::<Query>().unwrap_err().to_string();
            assert!(error.contains("default/web:http"), "{error}");
        }
    }

    #[test]
    fn a_port_is_meant_by_its_name_or_its_number() {
        assert!(parsed("web:http").means_port("http", 80));
        assert!(parsed("web:80").means_port("http", 80));
        assert!(!parsed("web:443").means_port("http", 80));
        assert!(parsed("web").means_port("", 80));
        assert!(!parsed("10.96.0.1:443").means_port("http", 80));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_understood(text in "[a-z]{1,9}(/[a-z]{1,9})?(:[a-z0-9]{1,5})?") {
            prop_assert_eq!(parsed(&text).to_string(), text);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Query>();
        }
    }
}

//! What an opener asks of the exit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use edgemesh_catalog::{ObjectName, Protocol, ServicePortName};

use crate::WireError;

/// Bytes before a request that tell its length.
pub const REQUEST_HEADER: usize = 2;

/// Longest request: names in Kubernetes have at most 63 characters (RFC 1123 labels), so this
/// is never reached by an honest one.
pub const MAX_REQUEST: usize = 512;

/// Longest name that is written; longer ones are no names in Kubernetes.
const MAX_NAME: usize = 63;

/// Connect me with this endpoint of that Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The service port whose client asks, with its protocol.
    pub service_port: ServicePortName,
    /// The endpoint on the exit's node.
    pub endpoint: SocketAddr,
}

impl Request {
    /// As bytes, the length first.
    ///
    /// # Errors
    ///
    /// When a name is longer than Kubernetes allows, or the protocol is neither TCP nor UDP.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut body = Vec::with_capacity(128);
        body.put_u8(match self.service_port.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => {
                return Err(WireError::Undefined {
                    field: "protocol",
                    value: 132,
                });
            }
        });
        let service = &self.service_port.service;
        put_name(service.namespace(), &mut body)?;
        put_name(service.name(), &mut body)?;
        put_name(&self.service_port.port, &mut body)?;
        match self.endpoint.ip() {
            IpAddr::V4(v4) => {
                body.put_u8(4);
                body.put_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                body.put_u8(6);
                body.put_slice(&v6.octets());
            }
        }
        body.put_u16(self.endpoint.port());
        let length = u16::try_from(body.len()).map_err(|_| too_long(body.len()))?;
        let mut bytes = Vec::with_capacity(REQUEST_HEADER + body.len());
        bytes.put_u16(length);
        bytes.append(&mut body);
        Ok(bytes)
    }

    /// From the bytes after the length.
    ///
    /// # Errors
    ///
    /// When they are not exactly one request.
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let protocol = match byte(&mut body)? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            value => {
                return Err(WireError::Undefined {
                    field: "protocol",
                    value,
                });
            }
        };
        let namespace = name(&mut body, "namespace")?;
        let service = name(&mut body, "service name")?;
        let port = name(&mut body, "port name")?;
        let ip = match byte(&mut body)? {
            4 => IpAddr::V4(Ipv4Addr::from(octets(&mut body)?)),
            6 => IpAddr::V6(Ipv6Addr::from(octets(&mut body)?)),
            value => {
                return Err(WireError::Undefined {
                    field: "address family",
                    value,
                });
            }
        };
        let number = u16::from_be_bytes(octets(&mut body)?);
        if !body.is_empty() {
            return Err(WireError::Length("request"));
        }
        Ok(Self {
            service_port: ServicePortName {
                service: ObjectName::new(namespace, service),
                port: port.into(),
                protocol,
            },
            endpoint: SocketAddr::new(ip, number),
        })
    }
}

/// How long the request after `header` is.
///
/// # Errors
///
/// When it is longer than [`MAX_REQUEST`].
pub fn request_length(header: [u8; REQUEST_HEADER]) -> Result<usize, WireError> {
    let length = usize::from(u16::from_be_bytes(header));
    if length > MAX_REQUEST {
        return Err(too_long(length));
    }
    Ok(length)
}

fn too_long(length: usize) -> WireError {
    WireError::TooLong {
        what: "request",
        length,
        most: MAX_REQUEST,
    }
}

fn put_name(name: &str, to: &mut Vec<u8>) -> Result<(), WireError> {
    match u8::try_from(name.len()) {
        Ok(length) if name.len() <= MAX_NAME => {
            to.put_u8(length);
            to.put_slice(name.as_bytes());
            Ok(())
        }
        Ok(_) | Err(_) => Err(WireError::TooLong {
            what: "name",
            length: name.len(),
            most: MAX_NAME,
        }),
    }
}

fn name<'b>(body: &mut &'b [u8], what: &'static str) -> Result<&'b str, WireError> {
    let length = usize::from(byte(body)?);
    if length > MAX_NAME {
        return Err(WireError::TooLong {
            what,
            length,
            most: MAX_NAME,
        });
    }
    let (text, rest) = body.split_at_checked(length).ok_or(SHORT)?;
    *body = rest;
    std::str::from_utf8(text).map_err(|_| WireError::NotText(what))
}

fn byte(body: &mut &[u8]) -> Result<u8, WireError> {
    body.try_get_u8().map_err(|_| SHORT)
}

fn octets<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (octets, rest) = body.split_first_chunk().ok_or(SHORT)?;
    *body = rest;
    Ok(*octets)
}

const SHORT: WireError = WireError::Length("request");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Request> {
        let name = "[a-z0-9-]{0,63}";
        (name, name, name, any::<bool>(), any::<SocketAddr>()).prop_map(
            |(namespace, service, port, udp, endpoint)| Request {
                service_port: ServicePortName {
                    service: ObjectName::new(namespace, service),
                    port: port.into(),
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                },
                // Scope and flow label are this host's business.
                endpoint: SocketAddr::new(endpoint.ip(), endpoint.port()),
            },
        )
    }

    proptest! {
        #[test]
        fn a_request_is_read_back(request in request()) {
            let bytes = request.encode().unwrap();
            let (header, body) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(request_length(*header), Ok(body.len()));
            prop_assert_eq!(Request::decode(body), Ok(request));
        }

        #[test]
        fn nothing_shorter_or_longer_is_a_request(request in request(), cut: prop::sample::Index) {
            let bytes = request.encode().unwrap();
            let body = &bytes[REQUEST_HEADER..];
            prop_assert!(Request::decode(&body[..cut.index(body.len())]).is_err());
            let mut longer = body.to_vec();
            longer.push(0);
            prop_assert!(Request::decode(&longer).is_err());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            let _ = Request::decode(&bytes);
        }
    }

    #[test]
    fn names_that_kubernetes_does_not_know_are_not_written() {
        let request = Request {
            service_port: ServicePortName {
                service: ObjectName::new("default", "x".repeat(64)),
                port: "".into(),
                protocol: Protocol::Tcp,
            },
            endpoint: SocketAddr::from(([10, 0, 0, 1], 80)),
        };
        assert!(request.encode().is_err());
    }

    #[test]
    fn a_length_beyond_the_longest_request_is_refused() {
        assert!(request_length([0xff, 0xff]).is_err());
        assert_eq!(request_length([2, 0]), Ok(MAX_REQUEST));
        assert!(request_length([2, 1]).is_err());
    }
}

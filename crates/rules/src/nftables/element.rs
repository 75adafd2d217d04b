//! The elements of the maps and sets in our own table: written, and read back.

use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::expression::{octets, protocol_number};
use super::table_name::{ADDRESSES, ENDPOINTS, FIRST_CHOICES, HAIRPINS, PORTALS, SHARED};
use super::wire::{Attributes, comment, comment_text, shortened};
use crate::netlink::nested;
use crate::{Family, RuleComment};

const KEY: u16 = 1;
const DATA: u16 = 2;
const USER_DATA: u16 = 6;
const VALUE: u16 = 1;
/// `NFTA_SET_ELEM_EXPR`: what the kernel does when the element is found.
const EXPRESSION: u16 = 7;
/// `NFTA_DATA_VERDICT`, and what is in it.
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const CHAIN: u16 = 2;
/// `NFT_JUMP`, `NFT_GOTO`.
const JUMP: i32 = -3;
const GOTO: i32 = -4;

/// What an element is found by, and with it the map or set that it is in.
///
/// Their order is the one in which maps and sets are filled, and the reverse of that in which
/// they are emptied: what leads somewhere needs what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The address of portals that the kernel sends to endpoints.
    Address(IpAddr),
    /// A pod of this node that is an endpoint of theirs.
    Hairpin(IpAddr),
    /// A portal: where it leads.
    Portal(Frontend),
    /// A portal and a number that was drawn: the endpoint.
    Endpoint(Frontend, u32),
    /// The same of a portal whose clients keep their endpoints: the chain of the endpoint.
    FirstChoice(Frontend, u32),
    /// A portal with several destinations: the chain that chooses.
    Shared(Frontend),
}

/// An element of one of the maps and sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Key,
    pub(super) leads: Leads,
    /// The service port that it is of; none where others tell.
    pub(super) comment: Option<RuleComment>,
}

/// Where an element leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// Nowhere: it is one of a set.
    Nowhere,
    To(SocketAddr),
    /// Into a chain, and on behind it.
    Into(String),
    /// Into a chain for good.
    Over(String),
}

impl Key {
    /// The map or set.
    pub(super) fn set(self) -> &'static str {
        match self {
            Key::Portal(_) => PORTALS,
            Key::Endpoint(..) => ENDPOINTS,
            Key::FirstChoice(..) => FIRST_CHOICES,
            Key::Shared(_) => SHARED,
            Key::Address(_) => ADDRESSES,
            Key::Hairpin(_) => HAIRPINS,
        }
    }

    /// The attributes by which the element is found.
    pub(super) fn attributes(self) -> Attributes {
        Attributes::default().value(KEY, &self.bytes())
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Key::Portal(frontend) | Key::Shared(frontend) => frontend_bytes(&frontend),
            Key::Endpoint(frontend, number) | Key::FirstChoice(frontend, number) => {
                let mut key = frontend_bytes(&frontend);
                key.extend(number.to_ne_bytes());
                key
            }
            Key::Address(ip) => octets(ip),
            Key::Hairpin(ip) => [octets(ip), octets(ip)].concat(),
        }
    }

    /// As nft writes it.
    pub(super) fn text(self) -> String {
        match self {
            Key::Portal(frontend) | Key::Shared(frontend) => key_text(&frontend),
            Key::Endpoint(frontend, number) | Key::FirstChoice(frontend, number) => {
                format!("{} . {number}", key_text(&frontend))
            }
            Key::Address(ip) => ip.to_string(),
            Key::Hairpin(ip) => format!("{ip} . {ip}"),
        }
    }

    /// None when it is not one that we make.
    fn read(set: &str, family: Family, bytes: &[u8]) -> Option<Self> {
        match set {
            PORTALS | SHARED | ENDPOINTS | FIRST_CHOICES => {
                let (frontend, rest) = split_frontend(family, bytes)?;
                match (set, rest) {
                    (PORTALS, []) => Some(Key::Portal(frontend)),
                    (SHARED, []) => Some(Key::Shared(frontend)),
                    (ENDPOINTS, rest) => Some(Key::Endpoint(frontend, number(rest)?)),
                    (FIRST_CHOICES, rest) => Some(Key::FirstChoice(frontend, number(rest)?)),
                    _ => None,
                }
            }
            ADDRESSES => match split_address(family, bytes)? {
                (ip, []) => Some(Key::Address(ip)),
                _ => None,
            },
            HAIRPINS => {
                let (from, rest) = split_address(family, bytes)?;
                match split_address(family, rest)? {
                    (to, []) if from == to => Some(Key::Hairpin(to)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl Element {
    /// As nft writes it.
    pub(super) fn text(&self) -> String {
        let mut text = self.key.text();
        if let Some(comment) = &self.comment {
            text += &format!(" comment \"{}\"", shortened(comment.as_str()));
        }
        match &self.leads {
            Leads::Nowhere => {}
            Leads::To(to) => text += &format!(" : {} . {}", to.ip(), to.port()),
            Leads::Into(chain) => text += &format!(" : jump {chain}"),
            Leads::Over(chain) => text += &format!(" : goto {chain}"),
        }
        text
    }

    pub(super) fn attributes(&self) -> Attributes {
        let mut attributes = self.key.attributes();
        attributes = match &self.leads {
            Leads::Nowhere => attributes,
            Leads::To(to) => {
                // A map's value is padded to whole registers, each part of it by itself.
                let mut value = octets(to.ip());
                value.extend(to.port().to_be_bytes());
                value.extend([0; 2]);
                attributes.value(DATA, &value)
            }
            Leads::Into(chain) => attributes.nested(DATA, &verdict(JUMP, chain)),
            Leads::Over(chain) => attributes.nested(DATA, &verdict(GOTO, chain)),
        };
        match &self.comment {
            Some(text) => attributes.bytes(USER_DATA, &comment(text.as_str())),
            None => attributes,
        }
    }

    /// Whether it looks like this when it is read back.
    pub(super) fn is_shown_as(&self, read: &Self) -> bool {
        let comment = |element: &Self| -> Option<String> {
            let comment = element.comment.as_ref()?;
            Some(shortened(comment.as_str()).to_owned())
        };
        (self.key, &self.leads) == (read.key, &read.leads) && comment(self) == comment(read)
    }

    /// Reads an element of a map or set back; none when it is not one that we make.
    pub(super) fn read(set: &str, family: Family, element: &[u8]) -> Option<Self> {
        let parts = Parts::of(element)?;
        let leads = match parts.data {
            None => Leads::Nowhere,
            Some(data) => match inner(data, VERDICT) {
                Some(verdict) => read_verdict(verdict)?,
                None => {
                    let (ip, rest) = split_address(family, inner(data, VALUE)?)?;
                    let [high, low, 0, 0] = rest else {
                        return None;
                    };
                    Leads::To(SocketAddr::new(ip, u16::from_be_bytes([*high, *low])))
                }
            },
        };
        Some(Self {
            key: Key::read(set, family, parts.key)?,
            leads,
            comment: parts.comment.map(RuleComment::new),
        })
    }
}

/// A verdict that leads into a chain.
pub(super) fn verdict(code: i32, chain: &str) -> Attributes {
    let verdict = Attributes::default()
        .number(CODE, code.cast_unsigned())
        .text(CHAIN, chain);
    Attributes::default().nested(VERDICT, &verdict)
}

/// The verdict that leads into a chain for good.
pub(super) fn over_to(chain: &str) -> Attributes {
    verdict(GOTO, chain)
}

fn read_verdict(verdict: &[u8]) -> Option<Leads> {
    let code = u32::from_be_bytes(inner(verdict, CODE)?.try_into().ok()?);
    let chain = inner(verdict, CHAIN)?.strip_suffix(b"\0")?;
    let chain = std::str::from_utf8(chain).ok()?.to_owned();
    match code.cast_signed() {
        JUMP => Some(Leads::Into(chain)),
        GOTO => Some(Leads::Over(chain)),
        _ => None,
    }
}

/// What an element as the kernel tells it is made of.
pub(super) struct Parts<'a> {
    pub(super) key: &'a [u8],
    data: Option<&'a [u8]>,
    pub(super) comment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// None when it has no key.
    pub(super) fn of(element: &'a [u8]) -> Option<Self> {
        let (mut key, mut data, mut comment) = (None, None, None);
        for (kind, value) in nested(element) {
            match kind {
                KEY => key = inner(value, VALUE),
                DATA => data = Some(value),
                USER_DATA => comment = comment_text(value),
                _ => {}
            }
        }
        Some(Self {
            key: key?,
            data,
            comment,
        })
    }
}

/// A portal as keys have it, each part padded to whole registers.
pub(super) fn frontend_bytes(frontend: &Frontend) -> Vec<u8> {
    let mut key = octets(frontend.ip);
    key.extend([protocol_number(frontend.protocol), 0, 0, 0]);
    key.extend(frontend.port.to_be_bytes());
    key.extend([0; 2]);
    key
}

/// The portal that a key begins with, and the rest.
pub(super) fn split_frontend(family: Family, key: &[u8]) -> Option<(Frontend, &[u8])> {
    let (ip, rest) = split_address(family, key)?;
    let [protocol, 0, 0, 0, high, low, 0, 0, rest @ ..] = rest else {
        return None;
    };
    let frontend = Frontend {
        ip,
        protocol: [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|known| protocol_number(*known) == *protocol)?,
        port: u16::from_be_bytes([*high, *low]),
    };
    Some((frontend, rest))
}

/// The attributes by which a portal's element is found.
pub(super) fn key_attributes(frontend: &Frontend) -> Attributes {
    Attributes::default().value(KEY, &frontend_bytes(frontend))
}

/// As nft writes it.
pub(super) fn key_text(frontend: &Frontend) -> String {
    format!(
        "{} . {} . {}",
        frontend.ip, frontend.protocol, frontend.port
    )
}

/// How many packets the counter of an element saw; 0 where it has none.
pub(super) fn packets(element: &[u8]) -> u64 {
    const NAME: u16 = 1;
    const DETAILS: u16 = 2;
    const PACKETS: u16 = 2;
    inner(element, EXPRESSION)
        .filter(|expression| inner(expression, NAME) == Some(b"counter\0"))
        .and_then(|expression| inner(inner(expression, DETAILS)?, PACKETS))
        .and_then(|count| count.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

fn inner(value: &[u8], wanted: u16) -> Option<&[u8]> {
    nested(value)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn split_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some(((*address).into(), rest))
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some(((*address).into(), rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ips() -> impl Strategy<Value = [IpAddr; 2]> {
        prop_oneof![
            any::<[[u8; 4]; 2]>().prop_map(|ips| ips.map(IpAddr::from)),
            any::<[[u8; 16]; 2]>().prop_map(|ips| ips.map(IpAddr::from)),
        ]
    }

    fn element() -> impl Strategy<Value = (Family, Element)> {
        let numbers = any::<(u16, u16, u32)>();
        (ips(), any::<bool>(), numbers, any::<String>(), 0..6).prop_map(
            |([ip, to], tcp, (port, to_port, slot), name, kind)| {
                let frontend = Frontend {
                    ip,
                    protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                    port,
                };
                let name = RuleComment::new(&name);
                let short = RuleComment::new(shortened(name.as_str()));
                let to = Leads::To(SocketAddr::new(to, to_port));
                let chain = format!("among-{slot}");
                let (key, leads, comment) = match kind {
                    0 => (Key::Portal(frontend), to, Some(short)),
                    1 => (Key::Endpoint(frontend, slot), to, None),
                    2 => (Key::FirstChoice(frontend, slot), Leads::Over(chain), None),
                    3 => (Key::Shared(frontend), Leads::Into(chain), Some(short)),
                    4 => (Key::Address(ip), Leads::Nowhere, None),
                    _ => (Key::Hairpin(ip), Leads::Nowhere, None),
                };
                let element = Element {
                    key,
                    leads,
                    comment,
                };
                (Family::of(ip), element)
            },
        )
    }

    proptest! {
        #[test]
        fn an_element_is_read_as_it_was_written((family, element) in element()) {
            let message = element.attributes().message(family);
            let read = Element::read(element.key.set(), family, &message[4..]);
            prop_assert_eq!(read, Some(element));
        }

        #[test]
        fn the_counter_of_an_element_is_read(count: u64) {
            let details = Attributes::default().long(1, 60).long(2, count);
            let counter = Attributes::default().text(1, "counter").nested(2, &details);
            let other = Attributes::default().text(1, "quota").nested(2, &details);
            let counted = |expression| {
                let element = Attributes::default().nested(EXPRESSION, expression);
                packets(&element.message(Family::V4)[4..])
            };
            prop_assert_eq!(counted(&counter), count);
            prop_assert_eq!(counted(&other), 0);
        }

        #[test]
        fn whatever_is_read_as_an_element_is_survived(bytes: Vec<u8>) {
            for set in [PORTALS, ENDPOINTS, FIRST_CHOICES, SHARED, ADDRESSES, HAIRPINS] {
                Element::read(set, Family::V4, &bytes);
                Element::read(set, Family::V6, &bytes);
            }
            packets(&bytes);
        }
    }
}

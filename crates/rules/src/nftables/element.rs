//! The elements of the map of portals: written, and read back.

use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::expression::{octets, protocol_number};
use super::wire::{Attributes, comment, comment_text, shortened};
use crate::netlink::nested;
use crate::{Family, PortalRule, Ruleset};

const KEY: u16 = 1;
const DATA: u16 = 2;
const USER_DATA: u16 = 6;
const VALUE: u16 = 1;
/// `NFTA_SET_ELEM_EXPR`: what the kernel does when the element is found.
const EXPRESSION: u16 = 7;

/// A portal as it stands in the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortalElement {
    pub(super) frontend: Frontend,
    pub(super) to: SocketAddr,
    pub(super) comment: String,
}

impl PortalElement {
    pub(super) fn of(rules: &Ruleset, frontend: &Frontend, rule: &PortalRule) -> Self {
        Self {
            frontend: *frontend,
            to: rules.destination(rule),
            comment: shortened(rule.comment.as_str()).to_owned(),
        }
    }

    /// As nft writes it.
    pub(super) fn text(&self) -> String {
        format!(
            "{} comment \"{}\" : {} . {}",
            key_text(&self.frontend),
            self.comment,
            self.to.ip(),
            self.to.port()
        )
    }

    pub(super) fn attributes(&self) -> Attributes {
        // A map's value is padded to whole registers, each part of it by itself.
        let mut value = octets(self.to.ip());
        value.extend(self.to.port().to_be_bytes());
        value.extend([0; 2]);
        key_attributes(&self.frontend)
            .value(DATA, &value)
            .bytes(USER_DATA, &comment(&self.comment))
    }

    /// Reads an element back; none when it is not one that we make.
    pub(super) fn read(family: Family, element: &[u8]) -> Option<Self> {
        let RefusedElement { frontend, comment } = RefusedElement::read(family, element)?;
        let (_, data) = nested(element).find(|(kind, _)| *kind == DATA)?;
        let (to_ip, to_rest) = split_address(family, inner_value(data)?)?;
        let [to_high, to_low, 0, 0] = to_rest else {
            return None;
        };
        Some(Self {
            frontend,
            to: SocketAddr::new(to_ip, u16::from_be_bytes([*to_high, *to_low])),
            comment,
        })
    }
}

/// A portal as it stands in the set of those that are refused where nobody takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedElement {
    pub(super) frontend: Frontend,
    pub(super) comment: String,
}

impl RefusedElement {
    pub(super) fn of(frontend: &Frontend, rule: &PortalRule) -> Self {
        Self {
            frontend: *frontend,
            comment: shortened(rule.comment.as_str()).to_owned(),
        }
    }

    /// As nft writes it.
    pub(super) fn text(&self) -> String {
        format!("{} comment \"{}\"", key_text(&self.frontend), self.comment)
    }

    pub(super) fn attributes(&self) -> Attributes {
        key_attributes(&self.frontend).bytes(USER_DATA, &comment(&self.comment))
    }

    /// Reads an element back; none when it is not one that we make. What has no comment is
    /// somebody else's, but refused like ours.
    pub(super) fn read(family: Family, element: &[u8]) -> Option<Self> {
        let mut key = None;
        let mut user_data = None;
        for (kind, value) in nested(element) {
            match kind {
                KEY => key = inner_value(value),
                USER_DATA => user_data = Some(value),
                _ => {}
            }
        }
        let (ip, rest) = split_address(family, key?)?;
        let [protocol, 0, 0, 0, high, low, 0, 0] = rest else {
            return None;
        };
        Some(Self {
            frontend: Frontend {
                ip,
                protocol: [Protocol::Tcp, Protocol::Udp]
                    .into_iter()
                    .find(|known| protocol_number(*known) == *protocol)?,
                port: u16::from_be_bytes([*high, *low]),
            },
            comment: user_data
                .and_then(comment_text)
                .unwrap_or_default()
                .to_owned(),
        })
    }
}

/// The attributes by which a portal's element is found.
pub(super) fn key_attributes(frontend: &Frontend) -> Attributes {
    let mut key = octets(frontend.ip);
    key.extend([protocol_number(frontend.protocol), 0, 0, 0]);
    key.extend(frontend.port.to_be_bytes());
    key.extend([0; 2]);
    Attributes::default().value(KEY, &key)
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
    let value = |bytes, kind| {
        nested(bytes)
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    };
    value(element, EXPRESSION)
        .filter(|expression| value(expression, NAME) == Some(b"counter\0"))
        .and_then(|expression| value(value(expression, DETAILS)?, PACKETS))
        .and_then(|count| count.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

fn inner_value(value: &[u8]) -> Option<&[u8]> {
    nested(value)
        .find(|(kind, _)| *kind == VALUE)
        .map(|(_, value)| value)
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
    use crate::RuleComment;

    fn element() -> impl Strategy<Value = (Family, PortalElement)> {
        let ips = prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        ];
        (ips, any::<bool>(), any::<(u16, u16)>(), any::<String>()).prop_map(
            |((ip, to), tcp, (port, to_port), name)| {
                let frontend = Frontend {
                    ip,
                    protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                    port,
                };
                let rules = Ruleset::new(to, 1, crate::Mark::AGENT);
                let comment = RuleComment::new(&name);
                let rule = PortalRule {
                    comment,
                    to_port,
                    kernel: None,
                };
                (Family::of(ip), PortalElement::of(&rules, &frontend, &rule))
            },
        )
    }

    proptest! {
        #[test]
        fn an_element_is_read_as_it_was_written((family, element) in element()) {
            let message = element.attributes().message(family);
            let read = PortalElement::read(family, &message[4..]);
            prop_assert_eq!(read, Some(element));
        }

        #[test]
        fn a_refused_element_is_read_as_it_was_written((family, element) in element()) {
            let PortalElement { frontend, comment, .. } = element;
            let refused = RefusedElement { frontend, comment };
            let message = refused.attributes().message(family);
            prop_assert_eq!(RefusedElement::read(family, &message[4..]), Some(refused));
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
            packets(&bytes);
            PortalElement::read(Family::V4, &bytes);
            PortalElement::read(Family::V6, &bytes);
        }
    }
}

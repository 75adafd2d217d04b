//! The expressions that rules are made of.

use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;

use super::wire::{Attributes, LISTED};
use crate::netlink::nested;
use crate::{Family, Mark};

/// A register of 4 bytes, by its place; those that follow it take the rest of a longer
/// value. The kernel calls the first one 8 (`NFT_REG32_00`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Register(pub(super) u32);

pub(super) const VERDICT: u32 = 0;

impl Register {
    pub(super) const FIRST: Self = Self(8);

    /// The register behind an address that begins in this one.
    pub(super) fn behind_address(self, family: Family) -> Self {
        Self(self.0 + u32::from(family.host_prefix()) / 32)
    }

    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Expressions in the order in which the kernel goes through them; the rest is left out
/// when one does not match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expressions(Attributes);

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    Return,
}

impl Expressions {
    pub(super) fn attributes(&self) -> &Attributes {
        &self.0
    }

    pub(super) fn push(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nested(2, data);
        Self(self.0.nested(LISTED, &expression))
    }

    /// The packet carries the mark.
    pub(super) fn with_mark(self, mark: Mark) -> Self {
        const MARK: u32 = 3;
        let bit = mark.value().to_ne_bytes();
        let masked = registers(Register::FIRST, Register::FIRST)
            .number(3, 4)
            .value(4, &bit)
            .value(5, &[0; 4]);
        self.load_meta(MARK, Register::FIRST)
            .push("bitwise", &masked)
            .equals(&bit)
    }

    /// The packet goes to the address.
    pub(super) fn for_address(self, address: IpAddr) -> Self {
        self.load_destination(Family::of(address), Register::FIRST)
            .equals(&octets(address))
    }

    /// The packet comes from the address.
    pub(super) fn sent_by(self, address: IpAddr) -> Self {
        self.load_source(Family::of(address), Register::FIRST)
            .equals(&octets(address))
    }

    /// The packet is of the protocol.
    pub(super) fn of_protocol(self, protocol: Protocol) -> Self {
        self.load_protocol(Register::FIRST)
            .equals(&[protocol_number(protocol)])
    }

    /// The packet begins a connection.
    pub(super) fn of_new_connection(self) -> Self {
        const STATE: u32 = 0;
        const NOT_EQUAL: u32 = 1;
        // `NF_CT_STATE_BIT(IP_CT_NEW)`.
        const NEW: u32 = 8;
        let state = Attributes::default()
            .number(2, STATE)
            .number(1, Register::FIRST.0);
        let masked = registers(Register::FIRST, Register::FIRST)
            .number(3, 4)
            .value(4, &NEW.to_ne_bytes())
            .value(5, &[0; 4]);
        self.push("ct", &state)
            .push("bitwise", &masked)
            .compare(NOT_EQUAL, &[0; 4])
    }

    /// The packet's address, protocol and port are in the set.
    pub(super) fn for_any_of(self, family: Family, set: &str, set_id: u32) -> Self {
        let data = Attributes::default()
            .text(1, set)
            .number(2, Register::FIRST.0)
            .number(4, set_id);
        self.load_frontend(family).push("lookup", &data)
    }

    /// The packet goes to the port.
    pub(super) fn for_port(self, port: u16) -> Self {
        self.load_port(Register::FIRST).equals(&port.to_be_bytes())
    }

    /// Puts the direction of the packet's connection into a set that forgets, and starts
    /// its time anew if it is there already. At a nat chain the direction is always the
    /// original one.
    pub(super) fn renew_in(self, set: &str, set_id: u32, milliseconds: u64) -> Self {
        const UPDATE: u32 = 1;
        let data = Attributes::default()
            .text(1, set)
            .number(2, set_id)
            .number(3, UPDATE)
            .number(4, Register::FIRST.0)
            .long(6, milliseconds);
        self.load_direction().push("dynset", &data)
    }

    /// The direction of the packet's connection is not in the set.
    pub(super) fn unless_in(self, set: &str, set_id: u32) -> Self {
        const INVERTED: u32 = 1;
        let data = Attributes::default()
            .text(1, set)
            .number(2, Register::FIRST.0)
            .number(4, set_id)
            .number(5, INVERTED);
        self.load_direction().push("lookup", &data)
    }

    pub(super) fn verdict(self, verdict: Verdict) -> Self {
        // `NF_DROP`, and `NFT_RETURN` of -5.
        let code = match verdict {
            Verdict::Drop => 0,
            Verdict::Return => (-5_i32).cast_unsigned(),
        };
        let verdict = Attributes::default().nested(2, &Attributes::default().number(1, code));
        let data = Attributes::default().number(1, VERDICT).nested(2, &verdict);
        self.push("immediate", &data)
    }

    /// Sends the connection to an address and a port.
    pub(super) fn send_to(self, destination: SocketAddr) -> Self {
        let family = Family::of(destination.ip());
        let (address, port) = (Register::FIRST, Register::FIRST.behind_address(family));
        self.load(address, &octets(destination.ip()))
            .load(port, &destination.port().to_be_bytes())
            .dnat(family, address, port)
    }

    /// Sends the connection to where the map says for its address, protocol and port.
    pub(super) fn send_by(self, family: Family, map: &str, map_id: u32) -> Self {
        let address = Register::FIRST;
        let data = Attributes::default()
            .text(1, map)
            .number(2, address.0)
            .number(3, address.0)
            .number(4, map_id);
        self.load_frontend(family).push("lookup", &data).dnat(
            family,
            address,
            address.behind_address(family),
        )
    }

    /// Refuses the packet as the kernel itself would, were nobody there: by a reset, or by
    /// word that the port can't be reached.
    pub(super) fn refuse(self, family: Family, protocol: Protocol) -> Self {
        const ICMP: u32 = 0;
        const RESET: u32 = 1;
        // `ICMP_PORT_UNREACH`, `ICMPV6_PORT_UNREACH`.
        let port_unreachable = match family {
            Family::V4 => 3,
            Family::V6 => 4,
        };
        let (kind, code) = match protocol {
            Protocol::Tcp => (RESET, 0),
            Protocol::Udp | Protocol::Sctp => (ICMP, port_unreachable),
        };
        let data = Attributes::default().number(1, kind).bytes(2, &[code]);
        self.push("reject", &data)
    }

    /// Address, protocol and port that the packet goes to, one behind the other.
    pub(super) fn load_frontend(self, family: Family) -> Self {
        let address = Register::FIRST;
        let protocol = address.behind_address(family);
        self.load_destination(family, address)
            .load_protocol(protocol)
            .load_port(protocol.next())
    }

    pub(super) fn load_meta(self, key: u32, to: Register) -> Self {
        let data = Attributes::default().number(2, key).number(1, to.0);
        self.push("meta", &data)
    }

    pub(super) fn load_protocol(self, to: Register) -> Self {
        const LAYER_4_PROTOCOL: u32 = 16;
        self.load_meta(LAYER_4_PROTOCOL, to)
    }

    fn load_direction(self) -> Self {
        const DIRECTION: u32 = 1;
        let data = Attributes::default()
            .number(2, DIRECTION)
            .number(1, Register::FIRST.0);
        self.push("ct", &data)
    }

    pub(super) fn load_destination(self, family: Family, to: Register) -> Self {
        const NETWORK_HEADER: u32 = 1;
        let offset = match family {
            Family::V4 => 16,
            Family::V6 => 24,
        };
        let length = u32::from(family.host_prefix()) / 8;
        self.load_payload(NETWORK_HEADER, offset, length, to)
    }

    fn load_port(self, to: Register) -> Self {
        const TRANSPORT_HEADER: u32 = 2;
        self.load_payload(TRANSPORT_HEADER, 2, 2, to)
    }

    pub(super) fn load_payload(self, base: u32, offset: u32, length: u32, to: Register) -> Self {
        let data = Attributes::default()
            .number(1, to.0)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.push("payload", &data)
    }

    fn load(self, to: Register, constant: &[u8]) -> Self {
        let data = Attributes::default().number(1, to.0).value(2, constant);
        self.push("immediate", &data)
    }

    pub(super) fn equals(self, constant: &[u8]) -> Self {
        const EQUAL: u32 = 0;
        self.compare(EQUAL, constant)
    }

    pub(super) fn compare(self, how: u32, constant: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, Register::FIRST.0)
            .number(2, how)
            .value(3, constant);
        self.push("cmp", &data)
    }

    pub(super) fn dnat(self, family: Family, address: Register, port: Register) -> Self {
        const DESTINATION: u32 = 1;
        let data = Attributes::default()
            .number(1, DESTINATION)
            .number(2, u32::from(family.netfilter_number()))
            .number(3, address.0)
            .number(5, port.0);
        self.push("nat", &data)
    }
}

pub(super) fn registers(from: Register, to: Register) -> Attributes {
    Attributes::default().number(1, from.0).number(2, to.0)
}

/// Where a rule of [`Expressions::send_to`] sends connections to, read back from the rule's
/// list of expressions.
pub(super) fn constant_destination(family: Family, expressions: &[u8]) -> Option<SocketAddr> {
    const NAME: u16 = 1;
    const DETAILS: u16 = 2;
    const DATA: u16 = 2;
    const VALUE: u16 = 1;
    let inner = |bytes, kind| {
        nested(bytes)
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    };
    let (mut ip, mut port) = (None, None);
    for (_, expression) in nested(expressions) {
        let details =
            inner(expression, DETAILS).filter(|_| inner(expression, NAME) == Some(b"immediate\0"));
        let value = details.and_then(|details| inner(inner(details, DATA)?, VALUE));
        match (value, family) {
            (Some(&[high, low]), _) => port = Some(u16::from_be_bytes([high, low])),
            (Some(value), Family::V4) => ip = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            (Some(value), Family::V6) => ip = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            (None, _) => {}
        }
    }
    Some(SocketAddr::new(ip?, port?))
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `IPPROTO_*`.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_rule_sends_to_is_read_as_it_was_written() {
        for to in ["169.254.96.16:20009", "[fd00:ed6e::1]:9"] {
            let to: SocketAddr = to.parse().unwrap();
            let rule = Expressions::default()
                .for_address(to.ip())
                .of_protocol(Protocol::Udp)
                .send_to(to);
            let family = Family::of(to.ip());
            let message = rule.attributes().message(family);
            assert_eq!(constant_destination(family, &message[4..]), Some(to));
        }
        let gate = Expressions::default().verdict(Verdict::Return);
        let message = gate.attributes().message(Family::V4);
        assert_eq!(constant_destination(Family::V4, &message[4..]), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_read_as_expressions_is_survived(bytes: Vec<u8>) {
            constant_destination(Family::V4, &bytes);
            constant_destination(Family::V6, &bytes);
        }
    }
}

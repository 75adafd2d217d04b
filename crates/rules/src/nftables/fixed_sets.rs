//! The maps and sets that our own table always has.

use super::table_name::{ADDRESSES, ENDPOINTS, FIRST_CHOICES, HAIRPINS, PORTALS, SHARED};
use super::wire::Attributes;
use crate::Family;

/// A type as nft numbers it, and how long its values are in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataType {
    number: u32,
    length: u32,
}

/// A map or set.
#[derive(Clone, Debug)]
pub(super) struct FixedSet {
    pub(super) name: &'static str,
    /// Its type as nft writes it.
    pub(super) text: String,
    key: DataType,
    leads: Leads,
    /// What nft needs to list a type that has no name.
    described: Option<Vec<u8>>,
    /// Whether it counts how often each element is found.
    pub(super) counts: bool,
}

/// Where the elements of a map lead.
#[derive(Clone, Copy, Debug)]
enum Leads {
    /// It is a set.
    Nowhere,
    To(DataType),
    IntoChains,
}

// nft's numbers of types.
const INTEGER: u32 = 4;
const V4_ADDRESS: u32 = 7;
const V6_ADDRESS: u32 = 8;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;

impl DataType {
    /// Several, one behind the other: nft writes the number of such a type as theirs, 6 bits
    /// each; the kernel pads each to whole registers.
    pub(super) fn of(family: Family, parts: &[u32]) -> Self {
        let whole = Self {
            number: 0,
            length: 0,
        };
        parts.iter().fold(whole, |whole, part| Self {
            number: (whole.number << 6) | part,
            length: whole.length
                + match *part {
                    V4_ADDRESS | V6_ADDRESS => u32::from(family.host_prefix()) / 8,
                    _ => 4,
                },
        })
    }

    /// Of a portal: address, protocol, port.
    pub(super) fn portal(family: Family) -> Self {
        Self::of(family, &[address(family), PROTOCOL, PORT])
    }

    /// Of an address.
    pub(super) fn address(family: Family) -> Self {
        Self::of(family, &[address(family)])
    }

    pub(super) fn put_as_key(self, attributes: Attributes) -> Attributes {
        attributes.number(4, self.number).number(5, self.length)
    }
}

fn address(family: Family) -> u32 {
    match family {
        Family::V4 => V4_ADDRESS,
        Family::V6 => V6_ADDRESS,
    }
}

impl FixedSet {
    /// That which is there without a kernel path, too.
    pub(super) fn portals(family: Family) -> Self {
        let name = address_name(family);
        Self {
            name: PORTALS,
            text: format!("type {name} . inet_proto . inet_service : {name} . inet_service"),
            key: DataType::portal(family),
            leads: Leads::To(DataType::of(family, &[address(family), PORT])),
            described: None,
            counts: true,
        }
    }

    /// Those of the kernel path.
    pub(super) fn of_kernel_path(family: Family) -> [Self; 5] {
        let name = address_name(family);
        let ip = family.nft_name();
        let portal = format!("{name} . inet_proto . inet_service");
        let drawn = format!("{ip} daddr . meta l4proto . th dport . numgen random mod 1");
        let drawn_type = DataType::of(family, &[address(family), PROTOCOL, PORT, INTEGER]);
        let set = |name, text, key| Self {
            name,
            text,
            key,
            leads: Leads::Nowhere,
            described: None,
            counts: false,
        };
        [
            Self {
                leads: Leads::To(DataType::of(family, &[address(family), PORT])),
                described: Some(description(family, &destination(family))),
                ..set(
                    ENDPOINTS,
                    format!("typeof {drawn} : {ip} daddr . th dport"),
                    drawn_type,
                )
            },
            Self {
                leads: Leads::IntoChains,
                described: Some(description(family, &described(VERDICT, &[]))),
                ..set(
                    FIRST_CHOICES,
                    format!("typeof {drawn} : verdict"),
                    drawn_type,
                )
            },
            Self {
                leads: Leads::IntoChains,
                counts: true,
                ..set(
                    SHARED,
                    format!("type {portal} : verdict"),
                    DataType::portal(family),
                )
            },
            set(ADDRESSES, format!("type {name}"), DataType::address(family)),
            set(
                HAIRPINS,
                format!("type {name} . {name}"),
                DataType::of(family, &[address(family); 2]),
            ),
        ]
    }

    /// What nft calls it: `map` or `set`.
    pub(super) fn kind(&self) -> &'static str {
        match self.leads {
            Leads::Nowhere => "set",
            Leads::To(_) | Leads::IntoChains => "map",
        }
    }

    /// Adds all but the names of table and set.
    pub(super) fn put_into(&self, attributes: Attributes) -> Attributes {
        const MAP: u32 = 8;
        /// `NFT_DATA_VERDICT`.
        const VERDICT: u32 = 0xffff_ff00;
        let flags = match self.leads {
            Leads::Nowhere => 0,
            Leads::To(_) | Leads::IntoChains => MAP,
        };
        let mut attributes = self.key.put_as_key(attributes.number(3, flags));
        attributes = match self.leads {
            Leads::Nowhere => attributes,
            Leads::To(data) => attributes.number(6, data.number).number(7, data.length),
            Leads::IntoChains => attributes.number(6, VERDICT),
        };
        if let Some(description) = &self.described {
            attributes = attributes.bytes(13, description);
        }
        if self.counts {
            let counter = Attributes::default()
                .text(1, "counter")
                .nested(2, &Attributes::default());
            attributes = attributes.nested(17, &counter);
        }
        attributes
    }
}

pub(super) fn address_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

// A type that has no name is told to nft by the expressions whose values are of it, as it
// stores them with the set itself (`src/netlink.c`, `include/expression.h`,
// `include/proto.h`): pieces of a kind, a length, and a value. The kernel does not read it.

const VERDICT: u32 = 1;
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const CONCATENATION: u32 = 13;
const NUMBER_GENERATOR: u32 = 23;

fn piece(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, length], value].concat()
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    piece(kind, &value.to_ne_bytes())
}

fn described(expression: u32, details: &[u8]) -> Vec<u8> {
    [number(0, expression), piece(1, details)].concat()
}

fn concatenated(parts: &[Vec<u8>]) -> Vec<u8> {
    let numbered: Vec<_> = (0..).zip(parts).map(|(n, part)| piece(n, part)).collect();
    described(CONCATENATION, &numbered.concat())
}

fn destination_address(family: Family) -> Vec<u8> {
    // A header, and the place of the field in nft's description of it.
    let (header, field) = match family {
        Family::V4 => (12, 12),
        Family::V6 => (13, 9),
    };
    described(PAYLOAD, &[number(0, header), number(1, field)].concat())
}

fn destination_port() -> Vec<u8> {
    const TRANSPORT_HEADER: u32 = 11;
    const PORT: u32 = 2;
    let details = [number(0, TRANSPORT_HEADER), number(1, PORT)];
    described(PAYLOAD, &details.concat())
}

fn destination(family: Family) -> Vec<u8> {
    concatenated(&[destination_address(family), destination_port()])
}

/// A map from a portal and a number that is drawn.
fn description(family: Family, data: &[u8]) -> Vec<u8> {
    const LAYER_4_PROTOCOL: u32 = 16;
    const RANDOM: u32 = 1;
    let drawn = [number(0, RANDOM), number(1, 1), number(2, 0)].concat();
    let key = concatenated(&[
        destination_address(family),
        described(META, &number(0, LAYER_4_PROTOCOL)),
        destination_port(),
        described(NUMBER_GENERATOR, &drawn),
    ]);
    // Neither key nor data is of one byte order, and nothing is merged.
    [
        number(0, 0),
        number(1, 0),
        piece(3, &key),
        piece(4, data),
        number(6, 0),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_numbered_as_nft_numbers_them() {
        let drawn = |family| {
            let [endpoints, ..] = FixedSet::of_kernel_path(family);
            (endpoints.key.number, endpoints.key.length)
        };
        assert_eq!(drawn(Family::V4), (0x1c_c344, 16));
        assert_eq!(drawn(Family::V6), (0x20_c344, 28));
        let portal = DataType::portal(Family::V4);
        assert_eq!((portal.number, portal.length), (0x730d, 12));
    }

    #[test]
    fn a_type_is_described_as_nft_does_it() {
        let [endpoints, ..] = FixedSet::of_kernel_path(Family::V4);
        // As nft 1.0.6 sends it.
        let sent = "00040000000001040000000003600004\
                    0d0000000158001400040700000001\
                    0c00040c00000001040c000000010e\
                    0004090000000106000410000000\
                    021400040700000001\
                    0c00040b000000010402000000\
                    031a000417000000011200040100000001040100000002040000000004340004\
                    0d000000012c001400040700000001\
                    0c00040c00000001040c000000\
                    011400040700000001\
                    0c00040b0000000104020000000604\
                    00000000";
        let hex: String = endpoints
            .described
            .unwrap()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, sent);
    }
}

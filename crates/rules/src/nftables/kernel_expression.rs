//! The expressions by which the kernel sends connections to endpoints itself.
//!
//! | expression | since Linux |
//! | --- | --- |
//! | `masq` with random ports (flag 0x10) | 3.18 |
//! | `dynset` into a set with timeouts | 4.1 |
//! | `numgen random`, `fib … type` | 4.10 |
//! | names of more than 31 bytes | 4.14 |
//! | `ct original ip daddr`, `ct original ip6 daddr` | 4.17 |
//!
//! Modules are `nft_numgen`, `nft_masq`, `nft_fib_ipv4` and `nft_fib_ipv6`. What a kernel lacks is found out by trying; see [`super::kernel_support`].

use ipnet::IpNet;

use super::element::over_to;
use super::expression::{Expressions, Register, VERDICT, octets, registers};
use super::wire::Attributes;
use crate::Family;

impl Expressions {
    /// What the map says for the packet's address, protocol and port becomes of it.
    pub(super) fn verdict_by(self, family: Family, map: &str) -> Self {
        self.load_frontend(family).look_up_verdict(map)
    }

    /// The same by address, protocol, port, and a number that is drawn below `slots`.
    pub(super) fn drawn_verdict_by(self, family: Family, slots: u32, map: &str) -> Self {
        self.load_drawn_frontend(family, slots).look_up_verdict(map)
    }

    /// Sends the connection to where the map says for its address, protocol, port, and a
    /// number that is drawn below `slots`.
    pub(super) fn send_by_drawn(self, family: Family, slots: u32, map: &str) -> Self {
        let to = Register::FIRST;
        let data = Attributes::default()
            .text(1, map)
            .number(2, to.0)
            .number(3, to.0);
        self.load_drawn_frontend(family, slots)
            .push("lookup", &data)
            .dnat(family, to, to.behind_address(family))
    }

    /// The packet's sender is in the set.
    pub(super) fn sent_by_any_of(self, family: Family, set: &str) -> Self {
        self.load_source(family, Register::FIRST).found_in(set)
    }

    /// Puts the packet's sender into a set that forgets, and starts its time anew if it is
    /// there already.
    pub(super) fn remember_source_in(self, family: Family, set: &str) -> Self {
        const UPDATE: u32 = 1;
        let data = Attributes::default()
            .text(1, set)
            .number(3, UPDATE)
            .number(4, Register::FIRST.0);
        self.load_source(family, Register::FIRST)
            .push("dynset", &data)
    }

    /// The packet goes from one address to the other of a pair in the set.
    pub(super) fn between_any_of(self, family: Family, set: &str) -> Self {
        let source = Register::FIRST;
        self.load_source(family, source)
            .load_destination(family, source.behind_address(family))
            .found_in(set)
    }

    /// The packet comes from the network.
    pub(super) fn sent_from(self, network: IpNet) -> Self {
        let (mask, address) = (octets(network.netmask()), octets(network.network()));
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let masked = registers(Register::FIRST, Register::FIRST)
            .number(3, length)
            .value(4, &mask)
            .value(5, &vec![0; mask.len()]);
        self.load_source(Family::of(network.addr()), Register::FIRST)
            .push("bitwise", &masked)
            .equals(&address)
    }

    /// The packet comes from an address of this host.
    pub(super) fn sent_by_this_host(self) -> Self {
        const BY_SOURCE: u32 = 1;
        const ADDRESS_TYPE: u32 = 3;
        // `RTN_LOCAL`, `include/uapi/linux/rtnetlink.h`.
        const LOCAL: u32 = 2;
        let data = Attributes::default()
            .number(1, Register::FIRST.0)
            .number(2, ADDRESS_TYPE)
            .number(3, BY_SOURCE);
        self.push("fib", &data).equals(&LOCAL.to_ne_bytes())
    }

    /// The packet goes elsewhere than its sender said.
    pub(super) fn of_sent_connection(self) -> Self {
        const STATUS: u32 = 2;
        const NOT_EQUAL: u32 = 1;
        // `IPS_DST_NAT`, `include/uapi/linux/netfilter/nf_conntrack_common.h`.
        const SENT: u32 = 1 << 5;
        let status = Attributes::default()
            .number(2, STATUS)
            .number(1, Register::FIRST.0);
        let masked = registers(Register::FIRST, Register::FIRST)
            .number(3, 4)
            .value(4, &SENT.to_ne_bytes())
            .value(5, &[0; 4]);
        self.push("ct", &status)
            .push("bitwise", &masked)
            .compare(NOT_EQUAL, &[0; 4])
    }

    /// The address to which the packet's connection was made, before it was sent elsewhere, is
    /// in the set.
    pub(super) fn once_for_any_of(self, family: Family, set: &str) -> Self {
        const DESTINATION_V4: u32 = 20;
        const DESTINATION_V6: u32 = 22;
        const ORIGINAL: u8 = 0;
        let key = match family {
            Family::V4 => DESTINATION_V4,
            Family::V6 => DESTINATION_V6,
        };
        let data = Attributes::default()
            .number(2, key)
            .number(1, Register::FIRST.0)
            .bytes(3, &[ORIGINAL]);
        self.push("ct", &data).found_in(set)
    }

    /// Goes on in another chain, for good.
    pub(super) fn over_to(self, chain: &str) -> Self {
        let data = Attributes::default()
            .number(1, VERDICT)
            .nested(2, &over_to(chain));
        self.push("immediate", &data)
    }

    /// The packet leaves with an address of this host as its sender's, and a random port.
    pub(super) fn masquerade(self) -> Self {
        // `NF_NAT_RANGE_PROTO_RANDOM_FULLY`, `include/uapi/linux/netfilter/nf_nat.h`.
        const FULLY_RANDOM: u32 = 1 << 4;
        self.push("masq", &Attributes::default().number(1, FULLY_RANDOM))
    }

    fn look_up_verdict(self, map: &str) -> Self {
        let data = Attributes::default()
            .text(1, map)
            .number(2, Register::FIRST.0)
            .number(3, VERDICT);
        self.push("lookup", &data)
    }

    fn found_in(self, set: &str) -> Self {
        let data = Attributes::default()
            .text(1, set)
            .number(2, Register::FIRST.0);
        self.push("lookup", &data)
    }

    /// Address, protocol and port that the packet goes to, and a number below `slots`.
    fn load_drawn_frontend(self, family: Family, slots: u32) -> Self {
        const RANDOM: u32 = 1;
        let behind = Register::FIRST.behind_address(family).next().next();
        let data = Attributes::default()
            .number(1, behind.0)
            .number(2, slots)
            .number(3, RANDOM)
            .number(4, 0);
        self.load_frontend(family).push("numgen", &data)
    }

    pub(super) fn load_source(self, family: Family, to: Register) -> Self {
        const NETWORK_HEADER: u32 = 1;
        let offset = match family {
            Family::V4 => 12,
            Family::V6 => 8,
        };
        let length = u32::from(family.host_prefix()) / 8;
        self.load_payload(NETWORK_HEADER, offset, length, to)
    }
}

//! Asks nf_tables, without a process and without reading our rules, what changed.
//!
//! The kernel numbers every change of a network namespace's nf_tables (its generation).
//! It gives tables, chains and rules numbers (handles) that are not used again, and counts
//! the rules of a chain. So it can be told in a few small messages that nothing was added
//! to our chains, removed from them, or moved in the hooks that lead to them, however much
//! kube-proxy changes in its own.
//! The messages are those of `include/uapi/linux/netfilter/nf_tables.h`.

use std::hash::{DefaultHasher, Hasher};
use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::{Message, NetlinkSocket, push_attribute};
use crate::{Family, OwnChain};

const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

const GENERATION_ID: u16 = 1;
const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_HANDLE: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_USE: u16 = 6;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;

/// The nf_tables of the current network namespace.
#[derive(Debug)]
pub(crate) struct NfTables {
    socket: NetlinkSocket,
}

/// Stands for the rules of the hooks, and for the number of rules in our chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(u64);

const NAT: &str = "nat";

impl NfTables {
    /// # Errors
    ///
    /// When the kernel has no nf_tables.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
        let mut nf_tables = Self { socket };
        nf_tables.generation()?;
        Ok(nf_tables)
    }

    /// The number of the last change.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        self.socket
            .ask(GET_GENERATION, &request(0, &[]), |message| {
                generation = number(message, GENERATION_ID, u32::from_be_bytes);
            })?;
        generation.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Whether a chain exists.
    pub(crate) fn has_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> io::Result<bool> {
        let names = [(CHAIN_TABLE, table), (CHAIN_NAME, chain)];
        found(
            self.socket
                .ask(GET_CHAIN, &request(protocol(family), &names), |_| {}),
        )
    }

    /// The shape of what is ours in the nat table.
    pub(crate) fn shape(&mut self, family: Family) -> io::Result<Shape> {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.table_handle(family, NAT)?);
        for chain in OwnChain::BOTH {
            self.hash_size(&mut hasher, family, chain.name())?;
            self.hash_rules(&mut hasher, family, chain.hook())?;
        }
        Ok(Shape(hasher.finish()))
    }

    /// The chain itself, and how many rules are in it or lead to it.
    fn hash_size(
        &mut self,
        hasher: &mut DefaultHasher,
        family: Family,
        chain: &str,
    ) -> io::Result<()> {
        let names = [(CHAIN_TABLE, NAT), (CHAIN_NAME, chain)];
        let request = request(protocol(family), &names);
        let exists = found(self.socket.ask(GET_CHAIN, &request, |message| {
            hasher.write_u64(number(message, CHAIN_HANDLE, u64::from_be_bytes).unwrap_or(0));
            hasher.write_u32(number(message, CHAIN_USE, u32::from_be_bytes).unwrap_or(0));
        }))?;
        hasher.write_u8(u8::from(exists));
        Ok(())
    }

    /// Which rules are in the chain, in their order.
    fn hash_rules(
        &mut self,
        hasher: &mut DefaultHasher,
        family: Family,
        chain: &str,
    ) -> io::Result<()> {
        let names = [(RULE_TABLE, NAT), (RULE_CHAIN, chain)];
        let request = request(protocol(family), &names);
        self.socket.dump(GET_RULE, &request, |message| {
            // Kernels before 4.10 don't filter by chain but send all rules.
            if has_name(message, RULE_CHAIN, chain) && has_name(message, RULE_TABLE, NAT) {
                let handle = number(message, RULE_HANDLE, u64::from_be_bytes);
                hasher.write_u64(handle.unwrap_or(0));
            }
        })
    }

    /// 0 when there is no such table, or the kernel (before 4.16) doesn't number tables.
    fn table_handle(&mut self, family: Family, table: &str) -> io::Result<u64> {
        let mut handle = None;
        let request = request(protocol(family), &[(TABLE_NAME, table)]);
        found(self.socket.ask(GET_TABLE, &request, |message| {
            handle = number(message, TABLE_HANDLE, u64::from_be_bytes);
        }))?;
        Ok(handle.unwrap_or(0))
    }
}

fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn request(protocol: u8, names: &[(u16, &str)]) -> Vec<u8> {
    let mut payload = vec![protocol, 0, 0, 0];
    for (kind, name) in names {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        push_attribute(&mut payload, *kind, &value);
    }
    payload
}

fn number<const N: usize, T>(
    message: Message<'_>,
    kind: u16,
    from_bytes: impl Fn([u8; N]) -> T,
) -> Option<T> {
    message
        .attributes(FIXED_PART)
        .find(|(found, _)| *found == kind)
        .and_then(|(_, value)| value.try_into().ok())
        .map(from_bytes)
}

fn has_name(message: Message<'_>, kind: u16, name: &str) -> bool {
    message
        .attributes(FIXED_PART)
        .any(|(found, value)| found == kind && value.strip_suffix(b"\0") == Some(name.as_bytes()))
}

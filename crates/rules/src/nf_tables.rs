//! Asks nf_tables, without a process and without reading our rules, what changed.
//!
//! The kernel numbers every change of a network namespace's nf_tables (its generation).
//! It gives tables, chains and rules numbers (handles) that are not used again, and counts
//! the rules of a chain. So it can be told in a few small messages that nothing was added
//! to our chains, removed from them, or moved in the hooks that lead to them, however much
//! kube-proxy changes in its own.
//! The messages are those of `include/uapi/linux/netfilter/nf_tables.h`.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::chain_names::MASQUERADE;
use crate::netlink::{Message, NetlinkSocket, Outgoing, push_attribute};
use crate::nf_hook::{Content, Fault, HookRule};
use crate::{Bucket, Family, OwnChain};

/// What frames a transaction (`NFNL_MSG_BATCH_*`).
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;

const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
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
const RULE_POSITION: u16 = 6;
/// `NFNL_BATCH_GENID`.
const BATCH_GENERATION: u16 = 1;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;

/// The nf_tables of the current network namespace.
#[derive(Debug)]
pub(crate) struct NfTables {
    socket: NetlinkSocket,
}

/// What of ours stands in the nat table, and among what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    table: u64,
    chains: [Option<ChainSize>; 2],
    /// The chains of portals by address, with the jumps to them; none when the first is not
    /// there, for they are there all together or not at all. None can be deleted while a rule
    /// leads to it, and a rule less is noticed.
    buckets: Vec<Option<ChainSize>>,
    /// With the jump to it, wherever that stands.
    masquerade: Option<ChainSize>,
    hooks: [Vec<HookRule>; 2],
}

/// A chain and how much is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChainSize {
    handle: u64,
    /// Rules in it, and jumps to it from elsewhere than the hooks.
    rules: u32,
}

impl Standing {
    /// The rules of the hook that shall jump to `chain`.
    pub(crate) fn hook(&self, chain: OwnChain) -> &[HookRule] {
        &self.hooks[chain.index()]
    }

    /// Whether nothing was added to our chains or taken from them, whatever happened in
    /// the hooks.
    pub(crate) fn same_chains(&self, other: &Self) -> bool {
        let chains = |standing: &Self| (standing.table, standing.chains, standing.masquerade);
        chains(self) == chains(other) && self.buckets == other.buckets
    }
}

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

    /// What of ours stands in the nat table.
    pub(crate) fn standing(&mut self, family: Family) -> io::Result<Standing> {
        let mut standing = Standing {
            table: self.table_handle(family, NAT)?,
            chains: [None; 2],
            buckets: self.bucket_sizes(family)?,
            masquerade: self.chain_size(family, MASQUERADE)?,
            hooks: [Vec::new(), Vec::new()],
        };
        for chain in OwnChain::BOTH {
            standing.hooks[chain.index()] = self.hook_rules(family, chain.hook())?;
        }
        for chain in OwnChain::BOTH {
            let jumps = standing
                .hooks
                .iter()
                .flatten()
                .filter(|rule| rule.leads_into() == Some(chain))
                .fold(0, |count: u32, _| count + 1);
            let size = self.chain_size(family, chain.name())?;
            standing.chains[chain.index()] = size.map(|size| ChainSize {
                rules: size.rules.wrapping_sub(jumps),
                ..size
            });
        }
        Ok(standing)
    }

    /// Puts our jumps where they must be, in one transaction, provided that nothing has
    /// changed since `generation`.
    pub(crate) fn move_jumps(
        &mut self,
        family: Family,
        generation: u32,
        faults: &[(OwnChain, Fault, &Content)],
    ) -> io::Result<()> {
        let mut frame = vec![0, 0];
        frame.extend((SUBSYSTEM >> 8).to_be_bytes());
        push_attribute(&mut frame, BATCH_GENERATION, &generation.to_be_bytes());
        let mut changes = Vec::new();
        for (chain, fault, jump) in faults {
            let names = [(RULE_TABLE, NAT), (RULE_CHAIN, chain.hook())];
            let mut new = request(protocol(family), &names);
            if let Some(before) = fault.before {
                push_attribute(&mut new, RULE_POSITION, &before.to_be_bytes());
            }
            jump.push_to(&mut new);
            changes.push((NEW_RULE, CREATE, new));
            for handle in &fault.delete {
                let mut delete = request(protocol(family), &names);
                push_attribute(&mut delete, RULE_HANDLE, &handle.to_be_bytes());
                changes.push((DELETE_RULE, 0, delete));
            }
        }
        let framing = |kind| Outgoing {
            kind,
            flags: 0,
            payload: &frame,
        };
        let changes = changes.iter().map(|(kind, flags, payload)| Outgoing {
            kind: *kind,
            flags: *flags,
            payload,
        });
        let messages: Vec<_> = std::iter::once(framing(BATCH_BEGIN))
            .chain(changes)
            .chain([framing(BATCH_END)])
            .collect();
        let last_change = messages.len() - 2;
        self.socket
            .send_together(&messages, last_change)
            .map_err(|refused| {
                tracing::debug!(message = refused.at, error = %refused.error, "not moved");
                refused.error
            })
    }

    fn bucket_sizes(&mut self, family: Family) -> io::Result<Vec<Option<ChainSize>>> {
        let mut sizes = Vec::new();
        for bucket in Bucket::all() {
            let size = self.chain_size(family, &bucket.to_string())?;
            if size.is_none() && sizes.is_empty() {
                break;
            }
            sizes.push(size);
        }
        Ok(sizes)
    }

    /// How many rules are in the chain or lead to it; none when there is no such chain.
    fn chain_size(&mut self, family: Family, chain: &str) -> io::Result<Option<ChainSize>> {
        let names = [(CHAIN_TABLE, NAT), (CHAIN_NAME, chain)];
        let request = request(protocol(family), &names);
        let mut size = ChainSize {
            handle: 0,
            rules: 0,
        };
        let exists = found(self.socket.ask(GET_CHAIN, &request, |message| {
            size.handle = number(message, CHAIN_HANDLE, u64::from_be_bytes).unwrap_or(0);
            size.rules = number(message, CHAIN_USE, u32::from_be_bytes).unwrap_or(0);
        }))?;
        Ok(exists.then_some(size))
    }

    /// Which rules are in the chain, in their order.
    fn hook_rules(&mut self, family: Family, chain: &str) -> io::Result<Vec<HookRule>> {
        let names = [(RULE_TABLE, NAT), (RULE_CHAIN, chain)];
        let request = request(protocol(family), &names);
        let mut rules = Vec::new();
        self.socket.dump(GET_RULE, &request, |message| {
            // Kernels before 4.10 don't filter by chain but send all rules.
            if has_name(message, RULE_CHAIN, chain) && has_name(message, RULE_TABLE, NAT) {
                rules.push(HookRule::read(message));
            }
        })?;
        Ok(rules)
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

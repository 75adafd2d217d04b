//! The base chains of nf_tables: which tables hook into the way of packets, and where.
//! The messages are those of `include/uapi/linux/netfilter/nf_tables.h`.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::Family;
use crate::netlink::{Message, NetlinkSocket};

const GET_CHAIN: u16 = (10 << 8) | 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;
/// `NF_INET_PRE_ROUTING` and what follows, `include/uapi/linux/netfilter.h`.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// A chain that the kernel hands packets to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseChain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// `prerouting`, `output` and so on.
    pub hook: &'static str,
    /// Smaller ones are asked first; iptables' nat rules and kube-proxy's stand at -100.
    pub priority: i32,
}

/// All base chains of a family, sorted; those of `inet` tables are told as IPv4's and IPv6's.
///
/// # Errors
///
/// When the kernel has no nf_tables, or does not let us ask.
pub fn base_chains(family: Family) -> io::Result<Vec<BaseChain>> {
    const INET: u8 = 1;
    let own = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
    let mut chains = Vec::new();
    for protocol in [own, INET] {
        socket.dump(GET_CHAIN, &[protocol, 0, 0, 0], |message| {
            chains.extend(base_chain(message));
        })?;
    }
    chains.sort();
    Ok(chains)
}

fn base_chain(message: Message<'_>) -> Option<BaseChain> {
    let attribute = |kind| {
        message
            .attributes(FIXED_PART)
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    };
    let hook = attribute(CHAIN_HOOK)?;
    Some(BaseChain {
        table: text(attribute(CHAIN_TABLE)?),
        name: text(attribute(CHAIN_NAME)?),
        kind: attribute(CHAIN_TYPE).map(text).unwrap_or_default(),
        hook: HOOKS
            .get(usize::try_from(number_in(hook, HOOK_NUMBER)?).ok()?)
            .copied()
            .unwrap_or("ingress"),
        priority: i32::from_ne_bytes(number_in(hook, HOOK_PRIORITY)?.to_ne_bytes()),
    })
}

/// A number among the nested attributes of a hook. All of those that matter are numbers of
/// four bytes, and come first.
fn number_in(nested: &[u8], kind: u16) -> Option<u32> {
    nested.chunks_exact(8).find_map(|attribute| {
        let (head, value) = attribute.split_at_checked(4)?;
        let [_, _, low, high] = *head.first_chunk()?;
        (u16::from_ne_bytes([low, high]) == kind)
            .then(|| value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)))?
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_among_nested_attributes() {
        let mut nested = vec![8, 0, 1, 0, 0, 0, 0, 3];
        nested.extend([8, 0, 2, 0]);
        nested.extend((-100_i32).to_be_bytes());
        let number = |kind| number_in(&nested, kind);
        assert_eq!(number(HOOK_NUMBER), Some(3));
        let priority = number(HOOK_PRIORITY).map(|p| i32::from_ne_bytes(p.to_ne_bytes()));
        assert_eq!(priority, Some(-100));
        assert_eq!(number(9), None);
        assert_eq!(number_in(&[1, 2], 1), None);
    }
}

//! The tables of ours that stand in the kernel, read for an explanation. Nothing is changed.
//!
//! Whether one of them handles a portal is for the kernel to say, not for the agent that
//! made it: its element must be in the map, and the gate before it open.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use edgemesh_plan::Frontend;
use nix::sys::socket::SockProtocol;

use super::element::{PortalElement, packets};
use super::expression::constant_port;
use super::rule::{NOT_THROUGH_PORTAL, THROUGH_PORTAL};
use super::table_look as look;
use super::table_name::{PORTALS, TableName, chain_name, hook_name};
use crate::inspect::{BaseChain, base_chains};
use crate::netlink::NetlinkSocket;
use crate::{Family, OwnChain};

/// How often the elements are read while others change the ruleset.
const ATTEMPTS: usize = 3;

/// A table of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFound {
    /// Its family.
    pub family: Family,
    /// `edgemesh`, or `edgemesh-2` if that was another agent's when it was made.
    pub name: &'static str,
    /// How long its chains go on to take connections without another sign of life of the
    /// agent; none when they let everything pass.
    pub open_for: Option<Duration>,
    /// Its chains that the kernel hands packets to.
    pub chains: BTreeMap<OwnChain, ChainFound>,
    /// What its map holds.
    pub portals: BTreeMap<Frontend, ElementFound>,
}

/// A chain of such a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFound {
    /// Its name.
    pub name: String,
    /// Smaller ones are asked first; iptables' nat rules and kube-proxy's stand at -100.
    pub priority: i32,
    /// The place of the rule that asks the map, counted from 1.
    pub place: usize,
}

/// An element of the map of such a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementFound {
    /// Where it leads.
    pub to: SocketAddr,
    /// Whether the kernel refuses what is sent there.
    pub refused: bool,
    /// The service port that it names.
    pub comment: String,
    /// As nft writes it, without its counter.
    pub text: String,
    /// Packets that it matched: as only the first packet of a connection comes by, these
    /// are connections. Both chains ask the same map, so pods' and the host's are one sum.
    pub packets: u64,
}

impl TableFound {
    /// The map of the portals, as nft's commands name it: `ip edgemesh portals`.
    #[must_use]
    pub fn map(&self) -> String {
        format!("{} {} {PORTALS}", self.family.nft_name(), self.name)
    }
}

/// The tables of ours that a family has, in the order in which the kernel asks them.
///
/// # Errors
///
/// When the kernel has no nf_tables, or does not let us ask.
pub fn own_tables(family: Family) -> io::Result<Vec<TableFound>> {
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
    let mut found = Vec::new();
    for name in TableName::all(family) {
        if let Some(facts) = look::table(&mut socket, name)? {
            match read(&mut socket, name) {
                Ok(table) => found.push((facts.handle, table)),
                // It was removed in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    // Of chains with the same priority the kernel asks the youngest first (kernel
    // `net/netfilter/core.c`, `nf_hook_entries_grow`).
    found.sort_by_key(|(handle, _)| std::cmp::Reverse(*handle));
    Ok(found.into_iter().map(|(_, table)| table).collect())
}

fn read(socket: &mut NetlinkSocket, table: TableName) -> io::Result<TableFound> {
    let bases = base_chains(table.family)?;
    let mut chains = BTreeMap::new();
    let mut refused_at = None;
    for chain in OwnChain::BOTH {
        let name = chain_name(chain);
        let is_it = |base: &&BaseChain| {
            (base.table.as_str(), base.name.as_str(), base.hook)
                == (table.name, name, hook_name(chain))
        };
        let mut asks_at = None;
        look::rules(socket, table, name, |place, comment, expressions| {
            if comment == THROUGH_PORTAL {
                asks_at = Some(place);
            } else if comment == NOT_THROUGH_PORTAL {
                refused_at = constant_port(expressions).or(refused_at);
            }
        })?;
        if let (Some(base), Some(place)) = (bases.iter().find(is_it), asks_at) {
            let (name, priority) = (base.name.clone(), base.priority);
            chains.insert(
                chain,
                ChainFound {
                    name,
                    priority,
                    place,
                },
            );
        }
    }
    Ok(TableFound {
        family: table.family,
        name: table.name,
        open_for: look::open_for(socket, table)?.filter(|left| !left.is_zero()),
        chains,
        portals: read_portals(socket, table, refused_at)?,
    })
}

fn read_portals(
    socket: &mut NetlinkSocket,
    table: TableName,
    refused_at: Option<u16>,
) -> io::Result<BTreeMap<Frontend, ElementFound>> {
    let mut portals = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        let generation = look::generation(socket)?;
        portals.clear();
        look::portals(socket, table, |bytes| {
            if let Some(element) = PortalElement::read(table.family, bytes) {
                let found = ElementFound {
                    to: element.to,
                    refused: Some(element.to.port()) == refused_at,
                    text: element.text(),
                    comment: element.comment,
                    packets: packets(bytes),
                };
                portals.insert(element.frontend, found);
            }
        })?;
        if look::generation(socket)? == generation {
            break;
        }
    }
    Ok(portals)
}

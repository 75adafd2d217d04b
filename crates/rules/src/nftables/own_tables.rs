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

use super::element::{Element, Key, Leads, packets};
use super::expression::constant_destination;
use super::kernel_rules::SEVERAL_DESTINATIONS;
use super::rule::{NOT_THROUGH_PORTAL, THROUGH_PORTAL};
use super::serving::slots_of;
use super::sticky_chains::endpoint_of;
use super::table_look as look;
use super::table_name::{
    ENDPOINTS, FIRST_CHOICES, PORTALS, SHARED, TableName, chain_name, hook_name,
};
use crate::inspect::{BaseChain, base_chains};
use crate::netlink::NetlinkSocket;
use crate::{Family, OwnChain, RuleComment};

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
    /// That of the rule before it, which asks the map of portals with several destinations;
    /// none where the kernel can't choose among them.
    pub shared_place: Option<usize>,
}

/// An element of the map of such a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementFound {
    /// Where it leads: to the agent, or to an endpoint if that is the only destination.
    pub to: SocketAddr,
    /// Whether that is the agent.
    pub to_agent: bool,
    /// Whether the kernel refuses what is sent there.
    pub refused: bool,
    /// The service port that it names.
    pub comment: String,
    /// As nft writes it, without its counter.
    pub text: String,
    /// Packets that it matched: as only the first packet of a connection comes by, these
    /// are connections. Both chains ask the same map, so pods' and the host's are one sum.
    pub packets: u64,
    /// How the kernel chooses, where there are several destinations; this element is then
    /// for what is not the kernel's part.
    pub shared: Option<SharedFound>,
}

/// An element of the map of portals with several destinations, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedFound {
    /// The chain that chooses.
    pub chain: String,
    /// Among how many destinations, each as likely: the endpoints, and the agent's part. None
    /// where a client keeps its endpoint.
    pub among: Option<u32>,
    /// The endpoints that the kernel sends to, sorted.
    pub endpoints: Vec<SocketAddr>,
    /// The element as nft writes it, without its counter.
    pub text: String,
    /// Connections that came by; those among them that went to the agent are counted by the
    /// portal's own element as well.
    pub packets: u64,
}

impl TableFound {
    /// The map that decides about the portal of an element, as nft's commands name it:
    /// `ip edgemesh portals`, or `ip edgemesh shared` where there are several destinations.
    #[must_use]
    pub fn map_of(&self, element: &ElementFound) -> String {
        let map = match element.shared {
            Some(_) => SHARED,
            None => PORTALS,
        };
        format!("{} {} {map}", self.family.nft_name(), self.name)
    }
}

impl ElementFound {
    /// The endpoints that the kernel sends connections to, sorted.
    #[must_use]
    pub fn kernel_endpoints(&self) -> &[SocketAddr] {
        match &self.shared {
            Some(shared) => &shared.endpoints,
            None if self.to_agent => &[],
            None => std::slice::from_ref(&self.to),
        }
    }

    /// Whether the agent has a part in the portal's connections.
    #[must_use]
    pub fn has_agents_part(&self) -> bool {
        match &self.shared {
            Some(shared) => shared.among.is_some_and(|slots| {
                usize::try_from(slots).is_ok_and(|slots| slots > shared.endpoints.len())
            }),
            None => self.to_agent,
        }
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
        let (mut asks_at, mut shared_place) = (None, None);
        look::rules(socket, table, name, |place, comment, expressions| {
            if comment == THROUGH_PORTAL {
                asks_at = Some(place);
            } else if comment == SEVERAL_DESTINATIONS {
                shared_place = Some(place);
            } else if comment == NOT_THROUGH_PORTAL {
                let to = constant_destination(table.family, expressions);
                refused_at = to.or(refused_at);
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
                    shared_place,
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
    refused_at: Option<SocketAddr>,
) -> io::Result<BTreeMap<Frontend, ElementFound>> {
    let mut found = Elements::default();
    for _ in 0..ATTEMPTS {
        let generation = look::generation(socket)?;
        found = Elements::default();
        for set in [PORTALS, SHARED, ENDPOINTS, FIRST_CHOICES] {
            let read = look::elements(socket, table, set, |bytes| {
                if let Some(element) = Element::read(set, table.family, bytes) {
                    found.take_in(table.family, element, packets(bytes), refused_at);
                }
            });
            match read {
                // Where the kernel can't send to endpoints itself, there are no such maps.
                Err(error) if error.kind() == io::ErrorKind::NotFound && set != PORTALS => {}
                outcome => outcome?,
            }
        }
        if look::generation(socket)? == generation {
            break;
        }
    }
    Ok(found.portals)
}

#[derive(Debug, Default)]
struct Elements {
    portals: BTreeMap<Frontend, ElementFound>,
}

impl Elements {
    /// To be told of the portals first, then of those that are shared, then of endpoints.
    fn take_in(
        &mut self,
        family: Family,
        element: Element,
        packets: u64,
        refused_at: Option<SocketAddr>,
    ) {
        let text = element.text();
        match (element.key, element.leads) {
            (Key::Portal(frontend), Leads::To(to)) => {
                let comment = element.comment.as_ref().map(RuleComment::as_str);
                let found = ElementFound {
                    to,
                    to_agent: refused_at.is_none_or(|agent| agent.ip() == to.ip()),
                    refused: Some(to) == refused_at,
                    text,
                    comment: comment.unwrap_or_default().to_owned(),
                    packets,
                    shared: None,
                };
                self.portals.insert(frontend, found);
            }
            (Key::Shared(frontend), Leads::Into(chain)) => {
                if let Some(portal) = self.portals.get_mut(&frontend) {
                    portal.shared = Some(SharedFound {
                        among: slots_of(&chain),
                        chain,
                        endpoints: Vec::new(),
                        text,
                        packets,
                    });
                }
            }
            (Key::Endpoint(frontend, _), Leads::To(to)) => self.add_endpoint(&frontend, Some(to)),
            (Key::FirstChoice(frontend, _), Leads::Over(chain)) => {
                self.add_endpoint(&frontend, endpoint_of(family, &chain));
            }
            _ => {}
        }
    }

    fn add_endpoint(&mut self, frontend: &Frontend, endpoint: Option<SocketAddr>) {
        let portal = self.portals.get_mut(frontend);
        if let Some(shared) = portal.and_then(|portal| portal.shared.as_mut())
            && let Some(endpoint) = endpoint
        {
            let place = shared.endpoints.partition_point(|known| *known < endpoint);
            shared.endpoints.insert(place, endpoint);
        }
    }
}

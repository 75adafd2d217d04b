//! Routes for ClusterIPs that no other route covers.
//!
//! IPv4 looks into the table `default` after `main` by itself, so there they are. They
//! must not cost packets anything that they don't concern: a routing rule, any at all,
//! makes every lookup of every packet walk the list of rules from then on
//! (`fib_has_custom_rules`, kernel `net/ipv4/fib_rules.c`), and so does a route of the type
//! local, less (`fib_has_custom_local_routes`, `net/ipv4/fib_frontend.c`); both last until
//! the network namespace ends.
//!
//! IPv6 has no such table. There they are in a table of our own, which a rule behind all
//! others leads to, for connections of the host itself alone (`iif lo`): pods' traffic
//! meets our nat rules before it is routed. They are of the type local, because many kernels
//! take any other IPv6 route over lo for one that rejects (`fib6_is_reject`,
//! `net/ipv6/route.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt, stream};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::{HostNetworkError, LOOPBACK, OWN_PROTOCOL};
use crate::Family;

/// The routing table of IPv6's last-resort routes, of our own.
pub const LAST_RESORT_TABLE: u32 = 9616;

/// The routing table of IPv4's last-resort routes: `default` (`RT_TABLE_DEFAULT`, kernel
/// `include/uapi/linux/rtnetlink.h`), which is empty unless somebody uses it, and is asked
/// when `main` has no route.
pub const LAST_RESORT_TABLE_V4: u32 = 253;

/// The priority of the rule that leads to the table of our own: behind main (32766), so that
/// any other route wins.
pub const LAST_RESORT_PRIORITY: u32 = 32800;

/// Requests that are on their way to the kernel at the same time.
const AT_ONCE: usize = 64;

/// The routes of ours that are there.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those that are not as they must be, with all that the kernel says of them: by that
    /// they can be deleted.
    routes: BTreeMap<IpAddr, Option<Box<RouteMessage>>>,
}

impl Found {
    pub(super) fn all_ours(addresses: &BTreeSet<IpAddr>) -> Self {
        Self {
            routes: addresses.iter().map(|&ip| (ip, None)).collect(),
        }
    }
}

/// Reads our routes.
pub(super) async fn read(handle: &Handle, intercept: IpAddr) -> Result<Found, HostNetworkError> {
    let mut found = Found::default();
    let family = Family::of(intercept);
    for_each_own_route(handle, family, table_of(family), |message| {
        if let Some(destination) = destination(&message) {
            let wrong = (!is_right(&message, intercept)).then(|| Box::new(message));
            found.routes.insert(destination, wrong);
        }
    })
    .await?;
    Ok(found)
}

/// Turns the routes that are there into those that are wanted; how many were added and
/// removed.
pub(super) async fn change<'a>(
    handle: &Handle,
    intercept: IpAddr,
    there: &Found,
    wanted: impl IntoIterator<Item = &'a IpAddr>,
) -> Result<(usize, usize), HostNetworkError> {
    let wanted: BTreeSet<&IpAddr> = wanted.into_iter().collect();
    let surplus: Vec<RouteMessage> = there
        .routes
        .iter()
        .filter_map(|(ip, wrong)| match wrong {
            Some(message) => Some(message.as_ref().clone()),
            None => (!wanted.contains(ip)).then(|| route(*ip, None)),
        })
        .collect();
    let missing: Vec<IpAddr> = wanted
        .into_iter()
        .copied()
        .filter(|ip| !matches!(there.routes.get(ip), Some(None)))
        .collect();
    let counts = (missing.len(), surplus.len());
    delete(handle, surplus).await?;
    add(handle, intercept, missing).await?;
    Ok(counts)
}

/// Removes all our routes, wherever they lead; how many there were.
pub(super) async fn remove_all(handle: &Handle, family: Family) -> Result<usize, HostNetworkError> {
    let mut count = remove_from(handle, family, table_of(family)).await?;
    if !takes_rule(family) {
        count += remove_from(handle, family, LAST_RESORT_TABLE).await?;
    }
    Ok(count)
}

/// Removes the rule that earlier versions needed for IPv4 as well, and the routes behind it.
pub(super) async fn remove_needless_rule(
    handle: &Handle,
    family: Family,
) -> Result<(), HostNetworkError> {
    if !takes_rule(family) && remove_rule(handle, family).await? {
        remove_from(handle, family, LAST_RESORT_TABLE).await?;
    }
    Ok(())
}

/// The table that the family's routes are in.
pub(super) fn table_of(family: Family) -> u32 {
    match family {
        Family::V4 => LAST_RESORT_TABLE_V4,
        Family::V6 => LAST_RESORT_TABLE,
    }
}

/// Whether the kernel looks into that table only because of a rule.
fn takes_rule(family: Family) -> bool {
    match family {
        Family::V4 => false,
        Family::V6 => true,
    }
}

async fn remove_from(
    handle: &Handle,
    family: Family,
    table: u32,
) -> Result<usize, HostNetworkError> {
    let mut there = Vec::new();
    for_each_own_route(handle, family, table, |message| there.push(message)).await?;
    let count = there.len();
    delete(handle, there).await?;
    Ok(count)
}

async fn add(
    handle: &Handle,
    intercept: IpAddr,
    destinations: Vec<IpAddr>,
) -> Result<(), HostNetworkError> {
    stream::iter(destinations)
        .map(|destination| async move {
            let request = handle.route().add(route(destination, Some(intercept)));
            // A route of somebody else's in our table does as well.
            tolerate(request.execute().await, io::ErrorKind::AlreadyExists).map_err(|error| {
                let doing = format!("add a last-resort route for {destination}");
                HostNetworkError::of_request(doing, error)
            })
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn delete(handle: &Handle, routes: Vec<RouteMessage>) -> Result<(), HostNetworkError> {
    stream::iter(routes)
        .map(|route| async move {
            let to = destination(&route);
            tolerate_gone(handle.route().del(route).execute().await).map_err(|error| {
                let to = to.map_or_else(|| "all".to_owned(), |to| to.to_string());
                let doing = format!("remove the last-resort route for {to}");
                HostNetworkError::of_request(doing, error)
            })
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// A route to one address. Without a source it stands for whatever route of ours leads
/// there, which is what a deletion names.
fn route(destination: IpAddr, source: Option<IpAddr>) -> RouteMessage {
    let family = Family::of(destination);
    let mut message = in_table(family, table_of(family));
    message.header.destination_prefix_length = family.host_prefix();
    message.header.kind = kind_of(family);
    message.header.scope = RouteScope::Host;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route_address(destination)));
    attributes.push(RouteAttribute::Oif(LOOPBACK));
    if let Some(source) = source {
        attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    message
}

/// The type of the family's routes.
fn kind_of(family: Family) -> RouteType {
    match family {
        Family::V4 => RouteType::Unicast,
        Family::V6 => RouteType::Local,
    }
}

/// What all our routes of a table have in common.
fn in_table(family: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::Other(OWN_PROTOCOL);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

async fn for_each_own_route(
    handle: &Handle,
    family: Family,
    table: u32,
    mut each: impl FnMut(RouteMessage),
) -> Result<(), HostNetworkError> {
    let mut routes = std::pin::pin!(handle.route().get(in_table(family, table)).execute());
    loop {
        match routes.try_next().await {
            Ok(Some(message)) if is_ours(&message, table) => each(message),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            // The table comes into being with its first route.
            Err(rtnetlink::Error::NetlinkError(error))
                if error.to_io().kind() == io::ErrorKind::NotFound =>
            {
                return Ok(());
            }
            Err(error) => return Err(HostNetworkError::of_request("read routes", error)),
        }
    }
}

fn is_ours(message: &RouteMessage, table: u32) -> bool {
    message.header.protocol == RouteProtocol::Other(OWN_PROTOCOL)
        && message.attributes.contains(&RouteAttribute::Table(table))
}

fn is_right(message: &RouteMessage, intercept: IpAddr) -> bool {
    let source = RouteAttribute::PrefSource(route_address(intercept));
    message.header.kind == kind_of(Family::of(intercept))
        && message.attributes.contains(&source)
        && message.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}

fn destination(message: &RouteMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        })
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Has the rule there while there are routes behind it, and only then; whether that changed
/// anything.
///
/// A host without such routes is not to have it: once there was any rule of somebody's, each
/// lookup of each packet walks the list (`fib6_has_custom_rules`, kernel
/// `net/ipv6/fib6_rules.c`).
pub(super) async fn set_rule(
    handle: &Handle,
    family: Family,
    is_needed: bool,
) -> Result<bool, HostNetworkError> {
    if !takes_rule(family) {
        return Ok(false);
    }
    if !is_needed {
        return remove_rule(handle, family).await;
    }
    if !own_rules(handle, family).await?.is_empty() {
        return Ok(false);
    }
    let mut request = handle.rule().add();
    *request.message_mut() = rule(family);
    tolerate(request.execute().await, io::ErrorKind::AlreadyExists).map_err(|error| {
        let doing = format!("add the rule of priority {LAST_RESORT_PRIORITY}");
        HostNetworkError::of_request(doing, error)
    })?;
    Ok(true)
}

/// Removes the rule; whether it was there.
pub(super) async fn remove_rule(handle: &Handle, family: Family) -> Result<bool, HostNetworkError> {
    let rules = own_rules(handle, family).await?;
    let any = !rules.is_empty();
    for rule in rules {
        tolerate_gone(handle.rule().del(rule).execute().await).map_err(|error| {
            let doing = format!("remove the rule of priority {LAST_RESORT_PRIORITY}");
            HostNetworkError::of_request(doing, error)
        })?;
    }
    Ok(any)
}

fn rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(LAST_RESORT_TABLE),
        RuleAttribute::Priority(LAST_RESORT_PRIORITY),
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::Protocol(RouteProtocol::Other(OWN_PROTOCOL)),
    ];
    message
}

/// The rules of our priority that lead to our table: nobody else's do.
async fn own_rules(handle: &Handle, family: Family) -> Result<Vec<RuleMessage>, HostNetworkError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let mut rules: Vec<RuleMessage> = handle
        .rule()
        .get(version)
        .execute()
        .try_collect()
        .await
        .map_err(|error| HostNetworkError::of_request("read routing rules", error))?;
    rules.retain(|rule| {
        rule.attributes
            .contains(&RuleAttribute::Table(LAST_RESORT_TABLE))
            && rule
                .attributes
                .contains(&RuleAttribute::Priority(LAST_RESORT_PRIORITY))
    });
    Ok(rules)
}

fn tolerate(
    outcome: Result<(), rtnetlink::Error>,
    kind: io::ErrorKind,
) -> Result<(), rtnetlink::Error> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().kind() == kind => Ok(()),
        other => other,
    }
}

/// IPv4 says `ESRCH` of a route that is gone, rules say `ENOENT`.
fn tolerate_gone(outcome: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(error))
            if error.to_io().raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) =>
        {
            Ok(())
        }
        other => tolerate(other, io::ErrorKind::NotFound),
    }
}

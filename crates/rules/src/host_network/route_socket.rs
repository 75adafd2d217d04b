//! The rtnetlink connection, and the kernel's word that something changed.

use std::io;

use nix::sys::socket::SockProtocol;
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, new_connection, new_connection_with_strict_check};
use tokio::task::JoinSet;

use super::last_resort_route::table_of;
use super::{HostNetworkError, LOOPBACK};
use crate::Family;
use crate::netlink::{Message, NetlinkSocket};

/// A connection that is opened anew when it broke.
#[derive(Debug)]
pub(super) struct RouteSocket {
    handle: Handle,
    port: u32,
    /// The task that carries requests and answers; ends with this value.
    connection: JoinSet<()>,
}

impl RouteSocket {
    pub(super) fn open() -> Result<Self, HostNetworkError> {
        let failed = |error| HostNetworkError::new("open a netlink socket for routes", error);
        // With the strict check the kernel sends the routes of one table only; kernels
        // before 4.20 don't know it and send all, which are sorted out on our side.
        let (mut connection, handle, _) = new_connection_with_strict_check()
            .or_else(|_| new_connection())
            .map_err(failed)?;
        let address = connection
            .socket_mut()
            .socket_mut()
            .bind_auto()
            .map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self {
            handle,
            port: address.port_number(),
            connection: tasks,
        })
    }

    pub(super) fn handle(&mut self) -> Result<Handle, HostNetworkError> {
        if self.connection.try_join_next().is_some() {
            *self = Self::open()?;
        }
        Ok(self.handle.clone())
    }

    /// The number by which the kernel names whoever made a change.
    pub(super) fn port(&self) -> u32 {
        self.port
    }
}

const DELETED_ADDRESS: u16 = 21;
const NEW_LINK: u16 = 16;
const DELETED_ROUTE: u16 = 25;
const DELETED_RULE: u16 = 33;
/// `struct rtmsg`, and its attribute for table numbers above 255.
const ROUTE_FIXED_PART: usize = 12;
const ROUTE_TABLE: u16 = 15;

/// Hears of changes by others that may concern us.
#[derive(Debug)]
pub(super) struct RouteChanges {
    socket: NetlinkSocket,
    family: Family,
    own_port: u32,
}

impl RouteChanges {
    pub(super) fn listen(family: Family, own_port: u32) -> io::Result<Self> {
        Ok(Self {
            socket: NetlinkSocket::open(SockProtocol::NetlinkRoute, groups(family))?,
            family,
            own_port,
        })
    }

    /// Whether there was any since the last call.
    pub(super) fn any(&mut self) -> bool {
        let (own_port, table) = (self.own_port, table_of(self.family));
        let mut any = false;
        let drained = self.socket.drain(|message| {
            any |= message.port != own_port && concerns_us(message, table);
        });
        // More than could be kept may have been anything.
        any || drained.is_err()
    }
}

/// Link, address, route and rule changes (`RTNLGRP_*` of `linux/rtnetlink.h`, as a mask).
fn groups(family: Family) -> u32 {
    let group = |number: u32| 1 << (number - 1);
    let link = group(1);
    match family {
        Family::V4 => link | group(5) | group(7) | group(8),
        Family::V6 => link | group(9) | group(11) | group(19),
    }
}

fn concerns_us(message: Message<'_>, table: u32) -> bool {
    match message.kind {
        DELETED_RULE => true,
        // In both, the device's number is the second word of the fixed part.
        DELETED_ADDRESS | NEW_LINK => word(message.payload, 4) == Some(LOOPBACK),
        DELETED_ROUTE => message
            .attributes(ROUTE_FIXED_PART)
            .any(|(kind, value)| kind == ROUTE_TABLE && word(value, 0) == Some(table)),
        _ => false,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

//! The kernel's IP sets, by a handful of messages of our own: no `ipset` is needed.
//!
//! Layout and numbers are those of `include/uapi/linux/netfilter/ipset/ip_set.h`.

use std::io;
use std::net::IpAddr;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use nix::sys::socket::SockProtocol;

use crate::Family;
use crate::netlink::{NetlinkSocket, nested, push_attribute};

const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const FLUSH: u16 = SUBSYSTEM | 4;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST_SETS: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;
/// `NLM_F_EXCL`: it is an error if the set is not there (or is there, or the element).
const EXCLUSIVE: u16 = 0x200;

const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const TYPE_NAME: u16 = 3;
const REVISION: u16 = 4;
const FAMILY: u16 = 5;
/// The second set of an exchange, in the place of `TYPE_NAME`.
const OTHER_NAME: u16 = 3;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const LIST: u16 = 8;
const LINE: u16 = 9;
/// Within `DATA`.
const IP: u16 = 1;
const PREFIX: u16 = 3;
const PORT: u16 = 4;
const TIMEOUT: u16 = 6;
const IP_PROTOCOL: u16 = 7;
const MOST_ELEMENTS: u16 = 19;
/// How many there are; told since Linux 4.10.
const ELEMENTS: u16 = 24;

/// `IPSET_FLAG_LIST_HEADER`.
const WITHOUT_ELEMENTS: u32 = 4;

const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;
/// The oldest that kernels since 3.0 speak.
const PROTOCOL_VERSION: u8 = 6;
/// Of a type; all kernels know the first.
const FIRST_REVISION: u8 = 0;
/// Elements per message: an attribute holds 64 KiB.
const PER_MESSAGE: usize = 1000;
/// Portals that one set takes.
const MOST_PORTALS: u32 = 1 << 20;

/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;

/// Error numbers of IP sets begin here.
const PRIVATE_ERRORS: i32 = 4096;

/// A set that exists or is to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetName {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
}

/// What sets are made of, of the kinds that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    /// Networks that vanish by themselves after so many seconds.
    PassingNetworks { seconds: u32 },
    /// Address, protocol and port.
    Portals,
}

/// The IP sets of the current network namespace.
#[derive(Debug)]
pub(crate) struct IpSets {
    socket: NetlinkSocket,
}

impl IpSets {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
        Ok(Self { socket })
    }

    /// Makes the set, unless the same one is there.
    pub(crate) fn create(&mut self, set: SetName, kind: SetKind) -> io::Result<()> {
        let mut payload = about(set);
        let (kind_name, data) = match kind {
            SetKind::PassingNetworks { seconds } => {
                let mut data = Vec::new();
                push_attribute(&mut data, TIMEOUT | NETWORK_ORDER, &seconds.to_be_bytes());
                ("hash:net\0", data)
            }
            SetKind::Portals => {
                let mut data = Vec::new();
                let most = MOST_PORTALS.to_be_bytes();
                push_attribute(&mut data, MOST_ELEMENTS | NETWORK_ORDER, &most);
                ("hash:ip,port\0", data)
            }
        };
        push_attribute(&mut payload, TYPE_NAME, kind_name.as_bytes());
        push_attribute(&mut payload, REVISION, &[FIRST_REVISION]);
        push_attribute(&mut payload, FAMILY, &[protocol_family(set.family)]);
        push_attribute(&mut payload, DATA | NESTED, &data);
        self.command(CREATE, &payload)
    }

    /// Takes everything out of it.
    pub(crate) fn flush(&mut self, set: SetName) -> io::Result<()> {
        self.command(FLUSH, &about(set))
    }

    /// Exchanges what is in two sets of the same kind: rules that ask one ask the other's
    /// elements from now on.
    pub(crate) fn swap(&mut self, one: SetName, other: SetName) -> io::Result<()> {
        let mut payload = about(one);
        let name = [other.name.as_bytes(), b"\0"].concat();
        push_attribute(&mut payload, OTHER_NAME, &name);
        self.command(SWAP, &payload)
    }

    /// How many elements the set has; none when the kernel doesn't tell.
    pub(crate) fn count(&mut self, set: SetName) -> io::Result<Option<usize>> {
        let mut payload = about(set);
        let flags = WITHOUT_ELEMENTS.to_be_bytes();
        push_attribute(&mut payload, FLAGS | NETWORK_ORDER, &flags);
        let mut count = None;
        let told = self.socket.dump(LIST_SETS, &payload, |message| {
            count = message
                .attributes(FIXED_PART)
                .filter(|(kind, _)| *kind == DATA)
                .flat_map(|(_, data)| nested(data))
                .find(|(kind, _)| *kind == ELEMENTS)
                .and_then(|(_, value)| {
                    usize::try_from(u32::from_be_bytes(value.try_into().ok()?)).ok()
                })
                .or(count);
        });
        told.map_err(in_words)?;
        Ok(count)
    }

    /// Removes the set; whether it was there.
    pub(crate) fn destroy(&mut self, set: SetName) -> io::Result<bool> {
        match self.socket.command(DESTROY, EXCLUSIVE, &about(set)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(in_words(error)),
        }
    }

    /// Adds a network, or lets its time begin anew.
    pub(crate) fn add_network(&mut self, set: SetName, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let mut data = address(ip);
        push_attribute(&mut data, PREFIX, &[prefix]);
        let mut payload = about(set);
        push_attribute(&mut payload, DATA | NESTED, &data);
        self.command(ADD, &payload)
    }

    /// Adds portals.
    pub(crate) fn add_portals(&mut self, set: SetName, portals: &[Frontend]) -> io::Result<()> {
        self.for_portals(ADD, set, portals)
    }

    /// Takes portals out.
    pub(crate) fn remove_portals(&mut self, set: SetName, portals: &[Frontend]) -> io::Result<()> {
        self.for_portals(DELETE, set, portals)
    }

    fn for_portals(&mut self, kind: u16, set: SetName, portals: &[Frontend]) -> io::Result<()> {
        for some in portals.chunks(PER_MESSAGE) {
            let mut list = Vec::new();
            for portal in some {
                let mut data = address(portal.ip);
                let port = portal.port.to_be_bytes();
                push_attribute(&mut data, PORT | NETWORK_ORDER, &port);
                push_attribute(&mut data, IP_PROTOCOL, &[ip_protocol(portal.protocol)]);
                push_attribute(&mut list, DATA | NESTED, &data);
            }
            let mut payload = about(set);
            push_attribute(&mut payload, LINE, &[0; 4]);
            push_attribute(&mut payload, LIST | NESTED, &list);
            self.command(kind, &payload)?;
        }
        Ok(())
    }

    fn command(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.socket.command(kind, 0, payload).map_err(in_words)
    }
}

/// `struct nfgenmsg`, and which set.
fn about(set: SetName) -> Vec<u8> {
    let mut payload = vec![protocol_family(set.family), 0, 0, 0];
    push_attribute(&mut payload, PROTOCOL, &[PROTOCOL_VERSION]);
    push_attribute(
        &mut payload,
        SET_NAME,
        &[set.name.as_bytes(), b"\0"].concat(),
    );
    payload
}

fn address(ip: IpAddr) -> Vec<u8> {
    let mut address = Vec::new();
    match ip {
        IpAddr::V4(ip) => push_attribute(&mut address, 1 | NETWORK_ORDER, &ip.octets()),
        IpAddr::V6(ip) => push_attribute(&mut address, 2 | NETWORK_ORDER, &ip.octets()),
    }
    let mut data = Vec::new();
    push_attribute(&mut data, IP | NESTED, &address);
    data
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// `IPPROTO_*`.
fn ip_protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Names what IP sets have numbers of their own for.
fn in_words(error: io::Error) -> io::Error {
    let Some(own) = error.raw_os_error().map(|code| code - PRIVATE_ERRORS) else {
        return error;
    };
    let words = match own {
        2 => "the kernel knows no IP set of this kind",
        3 => "there are too many IP sets",
        4 => "the IP set is in use",
        15 => "the IP set is full",
        _ => return error,
    };
    io::Error::other(words)
}

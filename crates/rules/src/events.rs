//! The kernel's word that somebody changed the rules.
//!
//! nf_tables tells of each transaction, iptables-nft's among them, who made it
//! (`NFT_MSG_NEWGEN`, kernel `net/netfilter/nf_tables_api.c`). iptables-legacy tells
//! nothing.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use nix::sys::socket::SockProtocol;
use socket2::{SockFilter, SockRef};
use tokio::io::unix::AsyncFd;

use crate::netlink::{Message, NetlinkSocket};

/// `NFNLGRP_NFTABLES`, as a mask.
const GROUP: u32 = 1 << (7 - 1);
const NEW_GENERATION: u16 = (10 << 8) | 15;
const GENERATION_ID: u16 = 1;
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;
/// More changes at once are not remembered one by one.
const REMEMBERED: usize = 64;

/// One change of the rules, by anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleChange {
    /// The kernel's number of the change.
    pub generation: u32,
    /// Who made it, where the kernel tells (since 4.16).
    pub by: Option<Changer>,
}

/// Who changed the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changer {
    /// The process, as the host's first pid namespace counts.
    pub process: u32,
    /// Its name: the kernel keeps 15 bytes of it.
    pub name: String,
    /// The name of the process that started it, as far as it could be found out.
    pub started_by: Option<String>,
}

impl fmt::Display for Changer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {}", self.name, self.process)?;
        if let Some(parent) = &self.started_by {
            write!(f, ", started by {parent}")?;
        }
        f.write_str(")")
    }
}

/// Hears of every change of nf_tables in the current network namespace.
#[derive(Debug)]
pub struct RuleEvents {
    socket: AsyncFd<NetlinkSocket>,
}

impl RuleEvents {
    /// Begins to listen. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// When the kernel has no nf_tables, or gives no socket.
    pub fn listen() -> io::Result<Self> {
        let socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, GROUP)?;
        // A transaction of 20,000 rules is told of rule by rule, and then as a whole. Only
        // the latter is wanted; without the filter it would be sorted out on our side.
        if let Err(error) = SockRef::from(&socket).attach_filter(&generations_only()) {
            tracing::debug!(%error, "listening to every change of every rule");
        }
        Ok(Self {
            socket: watched(socket)?,
        })
    }

    /// Waits for changes, and hands over those that were told since the last call, the
    /// latest last. It is empty when more was told than could be kept: then anything may
    /// have changed. Safe to cancel.
    ///
    /// # Errors
    ///
    /// When the socket is beyond use: listen anew.
    pub async fn next(&mut self) -> io::Result<Vec<RuleChange>> {
        loop {
            let mut ready = self.socket.readable_mut().await?;
            let Some(changes) = read_all(ready.get_inner_mut())? else {
                // There may be more to read.
                return Ok(Vec::new());
            };
            ready.clear_ready();
            if !changes.is_empty() {
                return Ok(changes.into());
            }
        }
    }

    /// As [`Self::next`], without waiting: what was told already.
    ///
    /// # Errors
    ///
    /// When the socket is beyond use: listen anew.
    pub fn told(&mut self) -> io::Result<Vec<RuleChange>> {
        read_all(self.socket.get_mut()).map(|changes| changes.unwrap_or_default().into())
    }
}

/// The latest of what `socket` holds; none when the kernel had more to tell than it could keep.
fn read_all(socket: &mut NetlinkSocket) -> io::Result<Option<VecDeque<RuleChange>>> {
    let mut changes = VecDeque::new();
    let drained = socket.drain(|message| {
        changes.extend(read(message));
        if changes.len() > REMEMBERED {
            changes.pop_front();
        }
    });
    match drained {
        Ok(()) => Ok(Some(changes)),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

#[expect(
    deprecated,
    reason = "the unsoundness is about types that may close their descriptor early, which \
              this one never does; the replacement is unsafe to call"
)]
fn watched(socket: NetlinkSocket) -> io::Result<AsyncFd<NetlinkSocket>> {
    AsyncFd::new(socket)
}

/// Lets through what begins with a message of the wanted kind. (The classic BPF of
/// `include/uapi/linux/filter.h`; it loads numbers in network byte order, and netlink has
/// them in the host's.)
fn generations_only() -> [SockFilter; 4] {
    const LOAD_HALF_WORD: u16 = 0x28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const AT_KIND: u32 = 4;
    let kind = u16::from_be_bytes(NEW_GENERATION.to_ne_bytes());
    [
        SockFilter::new(LOAD_HALF_WORD, 0, 0, AT_KIND),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from(kind)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn read(message: Message<'_>) -> Option<RuleChange> {
    if message.kind != NEW_GENERATION {
        return None;
    }
    let mut generation = None;
    let mut process = None;
    let mut name = None;
    for (kind, value) in message.attributes(FIXED_PART) {
        let number = || value.try_into().ok().map(u32::from_be_bytes);
        match kind {
            GENERATION_ID => generation = number(),
            PROCESS_ID => process = number(),
            PROCESS_NAME => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                name = Some(String::from_utf8_lossy(text).into_owned());
            }
            _ => {}
        }
    }
    Some(RuleChange {
        generation: generation?,
        by: process.zip(name).map(|(process, name)| Changer {
            started_by: parent_of(process, &name),
            process,
            name,
        }),
    })
}

/// iptables itself says little: kube-proxy, firewalld and Docker all start it. It is about
/// to end, and in another pid namespace its number means somebody else, so that this is
/// worth an attempt and no more.
fn parent_of(process: u32, name: &str) -> Option<String> {
    let comm = |process: u32| {
        let comm = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        Some(comm.trim_end().to_owned())
    };
    if comm(process)? != name {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()?;
    comm(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changed_the_rules_is_told_in_one_line() {
        let mut changer = Changer {
            process: 4711,
            name: "iptables-restor".to_owned(),
            started_by: None,
        };
        assert_eq!(changer.to_string(), "iptables-restor (process 4711)");
        changer.started_by = Some("kube-proxy".to_owned());
        assert_eq!(
            changer.to_string(),
            "iptables-restor (process 4711, started by kube-proxy)"
        );
    }

    #[test]
    fn a_process_is_found_by_number_and_name_or_not_at_all() {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert!(parent_of(std::process::id(), own.trim_end()).is_some());
        assert_eq!(parent_of(std::process::id(), "somebody else"), None);
    }
}

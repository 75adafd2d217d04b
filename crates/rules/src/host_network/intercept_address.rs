//! The agent's own address on the loopback device.
//!
//! It is told from the same address put there by somebody else by the protocol number
//! that newer kernels (5.18) keep with an address: then theirs is used, and left there.
//! On older kernels the address counts as ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::{AddressMessageBuilder, Handle};

use super::{HostNetworkError, OWN_PROTOCOL};
use crate::Family;

/// The loopback device has the same number in every network namespace
/// (`LOOPBACK_IFINDEX`, kernel `include/net/flow.h`).
pub(crate) const LOOPBACK: u32 = 1;

/// Adds the address if it is missing; whether it was.
pub(super) async fn ensure(handle: &Handle, intercept: IpAddr) -> Result<bool, HostNetworkError> {
    let there = on_loopback(handle, Family::of(intercept)).await?;
    if there.iter().any(|found| found.ip == Some(intercept)) {
        return Ok(false);
    }
    let mut request =
        handle
            .address()
            .add(LOOPBACK, intercept, Family::of(intercept).host_prefix());
    *request.message_mut() = message(intercept);
    request
        .execute()
        .await
        .map_err(|error| HostNetworkError::of_request(format!("add {intercept} to lo"), error))?;
    Ok(true)
}

/// Removes what is ours; whether anything was.
pub(super) async fn remove(
    handle: &Handle,
    family: Family,
    intercepts: &[IpAddr],
) -> Result<bool, HostNetworkError> {
    let there = on_loopback(handle, family).await?;
    let untagged_is_ours = !kernel_keeps_tags();
    let mut any = false;
    for found in there {
        let Some(ip) = found.ip else { continue };
        let ours = match found.tag {
            Some(tag) => tag == OWN_PROTOCOL,
            None => untagged_is_ours && intercepts.contains(&ip),
        };
        if ours {
            let removed = handle.address().del(found.message).execute().await;
            removed.map_err(|error| {
                HostNetworkError::of_request(format!("remove {ip} from lo"), error)
            })?;
            any = true;
        }
    }
    Ok(any)
}

fn message(intercept: IpAddr) -> AddressMessage {
    let prefix = Family::of(intercept).host_prefix();
    let mut message = match intercept {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(LOOPBACK)
            .address(ip, prefix)
            .build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(LOOPBACK)
            .address(ip, prefix)
            .build(),
    };
    match intercept {
        // Never the source of what leaves the node.
        IpAddr::V4(_) => message.header.scope = AddressScope::Host,
        // Usable at once: there is nobody on lo to be asked for duplicates.
        IpAddr::V6(_) => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::Other(
            OWN_PROTOCOL,
        )));
    message
}

/// Kernels from 5.18 on do (`IFA_PROTO`).
fn kernel_keeps_tags() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .is_ok_and(|release| version(&release) >= Some((5, 18)))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

struct Found {
    ip: Option<IpAddr>,
    tag: Option<u8>,
    message: AddressMessage,
}

async fn on_loopback(handle: &Handle, family: Family) -> Result<Vec<Found>, HostNetworkError> {
    let mut request = handle.address().get().set_link_index_filter(LOOPBACK);
    request.message_mut().header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let messages: Vec<AddressMessage> = request
        .execute()
        .try_collect()
        .await
        .map_err(|error| HostNetworkError::of_request("read the addresses of lo", error))?;
    Ok(messages.into_iter().map(Found::from).collect())
}

impl From<AddressMessage> for Found {
    fn from(message: AddressMessage) -> Self {
        let mut found = Self {
            ip: None,
            tag: None,
            message,
        };
        for attribute in &found.message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => found.ip = Some(*ip),
                AddressAttribute::Protocol(protocol) => found.tag = Some(u8::from(*protocol)),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_release_tells_its_version() {
        assert_eq!(version("5.10.0-28-amd64\n"), Some((5, 10)));
        assert_eq!(version("6.18.44-fc\n"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
        assert!(Some((5, 10)) < Some((5, 18)) && None < Some((5, 18)));
    }
}

//! Who is at the other end of a Unix socket, by the kernel's word.
//!
//! Names in the abstract namespace have no permissions: anybody can take a free one, and
//! anybody can connect to it. So both ends ask the kernel for the other's user.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The user at the other end, where it is neither root nor our own.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn stranger(socket: &impl AsFd) -> io::Result<Option<u32>> {
    let peer = getsockopt(socket, PeerCredentials)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    Ok((peer != 0 && peer != own).then_some(peer))
}

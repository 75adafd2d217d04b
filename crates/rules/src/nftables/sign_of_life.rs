//! A packet that shows the kernel that the agent lives.
//!
//! The chains let everything pass unless the set `alive` has its element, and that lives
//! for [`ALIVE_FOR`]. It is not renewed by a transaction but by a packet, which a rule of
//! ours takes for that purpose: a transaction would raise the generation of the ruleset,
//! and whoever reads or changes a large one (iptables-nft, nft) begins anew each time that
//! it was raised meanwhile, for ever if that happens every second. Nor does a packet wait for
//! anybody's transaction.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::{Family, Mark};

/// How long the chains go on without a sign of life, as when the agent hangs.
pub(super) const ALIVE_FOR: Duration = Duration::from_secs(3);

/// The port that signs of life go to, on loopback: "discard" (RFC 863).
pub(super) const PORT: u16 = 9;

/// The socket that they are sent through.
#[derive(Debug)]
pub(crate) struct SignOfLife {
    socket: UdpSocket,
    to: SocketAddr,
}

impl SignOfLife {
    /// Makes ready.
    ///
    /// # Errors
    ///
    /// The kernel's, about making a socket and giving it the mark.
    pub(super) fn prepare(family: Family, mark: Mark) -> io::Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::new(family.loopback(), 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Mark, &mark.value())?;
        let to = SocketAddr::new(family.loopback(), PORT);
        Ok(Self { socket, to })
    }

    /// Gives one, which opens the gate for [`ALIVE_FOR`].
    pub(crate) fn give(&self) {
        // The rule that takes it drops it, which is reported as EPERM. Whether it was taken is
        // seen by the set, when the table is looked at.
        let _ = self.socket.send_to(&[], self.to);
    }
}

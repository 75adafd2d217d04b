//! Shows the kernel every now and then that the agent lives.
//!
//! The chains let everything pass unless the set `alive` has its element, and that lives
//! for [`ALIVE_FOR`]. It is not renewed by a transaction but by a packet, which a rule of
//! ours takes for that purpose: a transaction would raise the generation of the ruleset,
//! and whoever reads or changes a large one (iptables-nft, nft) begins anew each time that
//! it was raised meanwhile, for ever if that happens every second.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::{Family, Mark};

/// How long the chains go on without a sign of life, as when the agent hangs.
pub(super) const ALIVE_FOR: Duration = Duration::from_secs(3);

/// How often there is one.
const PERIOD: Duration = Duration::from_millis(500);

/// The port that signs of life go to, on loopback: "discard" (RFC 863).
pub(super) const PORT: u16 = 9;

/// A task that shows signs of life until it is dropped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    task: JoinSet<()>,
}

impl Heartbeat {
    /// Begins.
    ///
    /// # Errors
    ///
    /// The kernel's, about making a socket and giving it the mark.
    pub(super) fn start(family: Family, mark: Mark) -> io::Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::new(family.loopback(), 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Mark, &mark.value())?;
        let to = SocketAddr::new(family.loopback(), PORT);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut beat = interval(PERIOD);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                beat.tick().await;
                // The rule that takes it drops it, which is reported as EPERM. Whether it
                // was taken is seen by the set, when the table is looked at.
                let _ = socket.send_to(&[], to);
            }
        });
        Ok(Self { task })
    }

    /// Whether it still goes on; it never ends by itself.
    pub(super) fn goes_on(&mut self) -> bool {
        self.task.try_join_next().is_none() && !self.task.is_empty()
    }
}

//! Bits of the packet mark.

use std::fmt;

/// One bit of the packet mark. By one the agent's own traffic passes its own rules, by
/// another it is told what came through a portal.
///
/// kube-proxy uses 0x4000 and 0x8000 (its `--iptables-masquerade-bit` and kubelet's drop
/// bit), Calico 0xffff0000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    bit: u8,
}

impl Mark {
    /// The agent's default: 0x2000.
    pub const AGENT: Mark = Mark { bit: 13 };

    /// What came through a portal and is not the agent's: 0x1000. It is set where the kernel
    /// has a part in portals, says that a packet may have to be masqueraded, and is taken off
    /// in the same place.
    pub const PORTAL: Mark = Mark { bit: 12 };

    /// kube-proxy's own, unless it was started with another `--iptables-masquerade-bit`: 0x4000.
    /// Beside its iptables rules it is set on what comes through a portal from outside the pods'
    /// networks, and taken off with [`Self::PORTAL`].
    pub const KUBE_PROXY: Mark = Mark { bit: 14 };

    /// Bit number `bit` of the mark; none when the mark has no such bit (it has 32).
    #[must_use]
    pub fn new(bit: u8) -> Option<Self> {
        (bit < 32).then_some(Self { bit })
    }

    /// The mark's value (`SO_MARK` of the agent's sockets), at the same time its mask.
    #[must_use]
    pub fn value(self) -> u32 {
        1 << self.bit
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_mark_is_a_single_bit() {
        assert_eq!(Mark::AGENT.to_string(), "0x2000");
        assert_eq!(Mark::new(31).map(Mark::value), Some(0x8000_0000));
        assert_eq!(Mark::new(32), None);
    }
}

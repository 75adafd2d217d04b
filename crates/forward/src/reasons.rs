//! Why things went as they did: the words of counters and logs.

use edgemesh_tunnel::OpenFault;

/// Why a TCP connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// It addressed the listener itself.
    NotThroughPortal,
    /// It came for an address that no portal has.
    NoPortal,
    /// The kernel could not tell where it was meant to go.
    NoOriginalDestination,
    /// It waited in vain for a place below the limit.
    Limit,
    /// No endpoint could be reached.
    DialFailed,
}

impl Refused {
    pub(crate) const ALL: [Self; 5] = [
        Self::NotThroughPortal,
        Self::NoPortal,
        Self::NoOriginalDestination,
        Self::Limit,
        Self::DialFailed,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotThroughPortal => "not_through_portal",
            Self::NoPortal => "no_portal",
            Self::NoOriginalDestination => "no_original_destination",
            Self::Limit => "limit",
            Self::DialFailed => "dial_failed",
        }
    }
}

/// Why an attempt to connect to an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DialFault {
    /// The endpoint answered with a reset.
    Refused,
    /// It did not answer in time.
    TimedOut,
    /// There is no way to it.
    Unreachable,
    /// This host could not try: out of descriptors, memory or ports, or forbidden. Says
    /// nothing about the endpoint.
    Local,
    /// Anything else.
    Other,
    /// Its node knows no such endpoint: what one of the two knows of the cluster is older.
    NotAnEndpoint,
    /// Its node leaves the Service to kube-proxy.
    Filtered,
    /// Its node, or this one, has as many streams in the tunnel as it may.
    Busy,
    /// The agent on its node is ending.
    ExitEnding,
    /// The agent on its node could not try.
    ExitFailed,
    /// Its node is no peer, or none any more.
    NoPeer,
    /// The agent on its node does not answer.
    PeerDown,
}

/// What a failed attempt tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The endpoint, which is better left out for a while.
    Endpoint,
    /// The way to it, which may be whole again in a moment.
    Way,
    /// This host, whatever is tried.
    Host,
}

impl DialFault {
    pub(crate) const ALL: [Self; 12] = [
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Local,
        Self::Other,
        Self::NotAnEndpoint,
        Self::Filtered,
        Self::Busy,
        Self::ExitEnding,
        Self::ExitFailed,
        Self::NoPeer,
        Self::PeerDown,
    ];

    pub(crate) fn blame(self) -> Blame {
        match self {
            Self::Refused
            | Self::TimedOut
            | Self::Unreachable
            | Self::Other
            | Self::NotAnEndpoint => Blame::Endpoint,
            Self::Filtered
            | Self::Busy
            | Self::ExitEnding
            | Self::ExitFailed
            | Self::NoPeer
            | Self::PeerDown => Blame::Way,
            Self::Local => Blame::Host,
        }
    }

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Other => "other",
            Self::NotAnEndpoint => "not_an_endpoint",
            Self::Filtered => "filtered",
            Self::Busy => "busy",
            Self::ExitEnding => "exit_ending",
            Self::ExitFailed => "exit_failed",
            Self::NoPeer => "no_peer",
            Self::PeerDown => "peer_down",
        }
    }
}

/// What the tunnel's answer means for dialling.
impl From<OpenFault> for DialFault {
    fn from(fault: OpenFault) -> Self {
        match fault {
            OpenFault::Refused => Self::Refused,
            OpenFault::TimedOut => Self::TimedOut,
            OpenFault::Unreachable => Self::Unreachable,
            OpenFault::NotAnEndpoint => Self::NotAnEndpoint,
            OpenFault::Filtered => Self::Filtered,
            OpenFault::Busy => Self::Busy,
            OpenFault::Draining => Self::ExitEnding,
            OpenFault::UnknownPeer => Self::NoPeer,
            OpenFault::PeerDown => Self::PeerDown,
            OpenFault::ExitFailed | OpenFault::Offence => Self::ExitFailed,
        }
    }
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// The socket towards its receiver was full.
    Full,
    /// No endpoint could be sent to.
    NoEndpoint,
    /// The kernel refused to send it.
    SendFailed,
}

impl Dropped {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::NoEndpoint, Self::SendFailed];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoEndpoint => "no_endpoint",
            Self::SendFailed => "send_failed",
        }
    }
}

/// Why a UDP flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowEnded {
    /// No datagram for the idle time.
    Idle,
    /// Put out to make room for another.
    Evicted,
    /// Its endpoint refused (ICMP) or could not be reached.
    EndpointFailed,
    /// The way to its endpoint through the tunnel broke.
    WayFailed,
    /// Its endpoint left the plan, or is reached by another way now.
    EndpointGone,
    /// Its portal was closed.
    PortalClosed,
}

impl FlowEnded {
    pub(crate) const ALL: [Self; 6] = [
        Self::Idle,
        Self::Evicted,
        Self::EndpointFailed,
        Self::WayFailed,
        Self::EndpointGone,
        Self::PortalClosed,
    ];

    /// The end of a flow that lost its endpoint by the fault of `blame`.
    pub(crate) fn for_blame(blame: Blame) -> Self {
        match blame {
            Blame::Endpoint => Self::EndpointFailed,
            Blame::Way | Blame::Host => Self::WayFailed,
        }
    }

    /// Whose fault the end was, where it was one.
    pub(crate) fn blame(self) -> Option<Blame> {
        match self {
            Self::EndpointFailed => Some(Blame::Endpoint),
            Self::WayFailed => Some(Blame::Way),
            Self::Idle | Self::Evicted | Self::EndpointGone | Self::PortalClosed => None,
        }
    }

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::EndpointFailed => "endpoint_failed",
            Self::WayFailed => "way_failed",
            Self::EndpointGone => "endpoint_gone",
            Self::PortalClosed => "portal_closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_endpoints_fault_is_not_laid_to_it() {
        for fault in OpenFault::ALL {
            let expected = if fault.is_about_endpoint() {
                Blame::Endpoint
            } else {
                Blame::Way
            };
            assert_eq!(DialFault::from(fault).blame(), expected, "{fault}");
        }
    }
}

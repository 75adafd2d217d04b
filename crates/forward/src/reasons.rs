//! Why things went as they did: the words of counters and logs.

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
}

impl DialFault {
    pub(crate) const ALL: [Self; 5] = [
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Local,
        Self::Other,
    ];

    /// Whether the fault is this host's and says nothing about the endpoint.
    #[must_use]
    pub fn is_local(self) -> bool {
        self == Self::Local
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
    /// Its endpoint left the plan.
    EndpointGone,
    /// Its portal was closed.
    PortalClosed,
}

impl FlowEnded {
    pub(crate) const ALL: [Self; 5] = [
        Self::Idle,
        Self::Evicted,
        Self::EndpointFailed,
        Self::EndpointGone,
        Self::PortalClosed,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::EndpointFailed => "endpoint_failed",
            Self::EndpointGone => "endpoint_gone",
            Self::PortalClosed => "portal_closed",
        }
    }
}

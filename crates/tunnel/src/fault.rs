//! Why a stream to an endpoint of another node was not to be had.

use edgemesh_wire::Answer;

/// Why there is no way to an endpoint through the tunnel. Not one byte of the client's has
/// reached the endpoint, so that another endpoint may be tried; unless
/// [`FirstBytes::may_be_delivered`] says otherwise, as when a connection was lost before the answer.
///
/// [`FirstBytes::may_be_delivered`]: crate::FirstBytes::may_be_delivered
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum OpenFault {
    /// The exit reached the endpoint, which refused.
    #[error("the endpoint refused")]
    Refused,
    /// The endpoint did not answer the exit in time.
    #[error("the endpoint did not answer the exit in time")]
    TimedOut,
    /// The exit has no way to the endpoint.
    #[error("the exit has no way to the endpoint")]
    Unreachable,
    /// The exit's cluster state knows no such endpoint on its node: one of the two is behind.
    #[error("the exit knows no such endpoint on its node")]
    NotAnEndpoint,
    /// The exit leaves the Service to kube-proxy.
    #[error("the exit leaves this Service to kube-proxy")]
    Filtered,
    /// The exit, or this node, has as many streams as it may.
    #[error("as many streams as allowed are open")]
    Busy,
    /// The exit is ending.
    #[error("the exit is ending")]
    Draining,
    /// No node of that name has a MeshNode that is believed.
    #[error("no believed MeshNode of that node")]
    UnknownPeer,
    /// The peer does not answer.
    #[error("the peer does not answer")]
    PeerDown,
    /// The exit could not try, or did not understand.
    #[error("the exit could not try")]
    ExitFailed,
    /// The peer answered with what is no answer.
    #[error("the peer's answer makes no sense")]
    Offence,
}

impl OpenFault {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::NotAnEndpoint,
        Self::Filtered,
        Self::Busy,
        Self::Draining,
        Self::UnknownPeer,
        Self::PeerDown,
        Self::ExitFailed,
        Self::Offence,
    ];

    /// What an exit's answer means; none when it is connected.
    pub(crate) fn of(answer: Answer) -> Option<Self> {
        match answer {
            Answer::Connected => None,
            Answer::Refused => Some(Self::Refused),
            Answer::TimedOut => Some(Self::TimedOut),
            Answer::Unreachable => Some(Self::Unreachable),
            Answer::NotAnEndpoint => Some(Self::NotAnEndpoint),
            Answer::Filtered => Some(Self::Filtered),
            Answer::Busy => Some(Self::Busy),
            Answer::Draining => Some(Self::Draining),
            Answer::Failed => Some(Self::ExitFailed),
            // The latter is asked again before anybody hears of it.
            Answer::Malformed | Answer::NotAtOnce => Some(Self::Offence),
        }
    }

    /// Whether it tells something about the endpoint itself, not about the way to it.
    #[must_use]
    pub fn is_about_endpoint(self) -> bool {
        match self {
            Self::Refused | Self::TimedOut | Self::Unreachable | Self::NotAnEndpoint => true,
            Self::Filtered
            | Self::Busy
            | Self::Draining
            | Self::UnknownPeer
            | Self::PeerDown
            | Self::ExitFailed
            | Self::Offence => false,
        }
    }

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::NotAnEndpoint => "not_an_endpoint",
            Self::Filtered => "filtered",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::UnknownPeer => "unknown_peer",
            Self::PeerDown => "peer_down",
            Self::ExitFailed => "exit_failed",
            Self::Offence => "offence",
        }
    }
}

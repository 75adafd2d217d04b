//! What the exit says to a request.

use crate::WireError;

/// What became of a request. Each but [`Answer::Connected`] means that not one byte has gone
/// to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Answer {
    /// The endpoint has accepted (TCP), or there is a socket towards it (UDP).
    Connected = 0,
    /// The endpoint refused.
    Refused = 1,
    /// The endpoint did not answer in time.
    TimedOut = 2,
    /// There is no way from the exit to the endpoint.
    Unreachable = 3,
    /// The exit's cluster knows no such endpoint on its node.
    NotAnEndpoint = 4,
    /// The Service is left to kube-proxy: nobody may come to it this way.
    Filtered = 5,
    /// The exit serves as many as it may.
    Busy = 6,
    /// The exit is ending.
    Draining = 7,
    /// The exit could not try (out of files, memory or ports).
    Failed = 8,
    /// The request was not understood.
    Malformed = 9,
    /// The endpoint has not accepted at once, and bytes of the client's came behind the request:
    /// they were dropped, so that the opener may ask elsewhere, too, or again without them.
    /// Said only to who sent such bytes.
    NotAtOnce = 10,
}

impl Answer {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::Connected,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::NotAnEndpoint,
        Self::Filtered,
        Self::Busy,
        Self::Draining,
        Self::Failed,
        Self::Malformed,
        Self::NotAtOnce,
    ];

    /// As a byte.
    #[must_use]
    pub fn encode(self) -> u8 {
        self as u8
    }

    /// From a byte.
    ///
    /// # Errors
    ///
    /// When it stands for no answer.
    pub fn decode(byte: u8) -> Result<Self, WireError> {
        Self::ALL
            .into_iter()
            .find(|answer| answer.encode() == byte)
            .ok_or(WireError::Undefined {
                field: "answer",
                value: byte,
            })
    }

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::NotAnEndpoint => "not_an_endpoint",
            Self::Filtered => "filtered",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::NotAtOnce => "not_at_once",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_read_back_and_no_other_byte_is_one() {
        for byte in 0..=u8::MAX {
            match Answer::decode(byte) {
                Ok(answer) => assert_eq!(answer.encode(), byte),
                Err(_) => assert!(usize::from(byte) >= Answer::ALL.len()),
            }
        }
    }
}

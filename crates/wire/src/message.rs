//! Datagrams on a stream: those that are too large for a packet, each after its length; and
//! how many of the other direction were taken.

use crate::WireError;

/// Bytes of the length before each message.
pub const MESSAGE_HEADER: usize = 2;

/// Longest datagram that IPv4 carries (65,535 less 20 and 8 bytes of headers); IPv6 carries
/// 20 more, which no endpoint behind an IPv4 Service could take.
pub const MAX_MESSAGE: usize = 65_507;

/// What stands at the start of each thing on a stream of messages. All values of its two bytes
/// are defined: those that are no length tell a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageHeader {
    /// A message of so many bytes follows, [`MAX_MESSAGE`] at most.
    Message(usize),
    /// So many messages of the other direction were taken since this was told last. Nothing
    /// follows.
    Taken(usize),
}

impl MessageHeader {
    /// The most messages that one word can tell of.
    pub const MOST_TAKEN: usize = u16::MAX as usize - MAX_MESSAGE;

    /// As bytes.
    ///
    /// # Errors
    ///
    /// When the message is longer than [`MAX_MESSAGE`], when more were taken than
    /// [`Self::MOST_TAKEN`], or none.
    pub fn encode(self) -> Result<[u8; MESSAGE_HEADER], WireError> {
        let value = match self {
            Self::Message(length) if length <= MAX_MESSAGE => length,
            Self::Message(length) => {
                return Err(WireError::TooLong {
                    what: "message",
                    length,
                    most: MAX_MESSAGE,
                });
            }
            Self::Taken(0) => return Err(WireError::Length("count of messages taken")),
            Self::Taken(count) => MAX_MESSAGE.saturating_add(count),
        };
        u16::try_from(value)
            .map(u16::to_be_bytes)
            .map_err(|_| WireError::Length("count of messages taken"))
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: [u8; MESSAGE_HEADER]) -> Self {
        let value = usize::from(u16::from_be_bytes(bytes));
        match value.checked_sub(MAX_MESSAGE) {
            None | Some(0) => Self::Message(value),
            Some(count) => Self::Taken(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_values_mean_something_and_are_read_back() {
        for value in 0..=u16::MAX {
            let bytes = value.to_be_bytes();
            assert_eq!(MessageHeader::decode(bytes).encode(), Ok(bytes));
        }
        let longest = MessageHeader::Message(MAX_MESSAGE);
        assert_eq!(MessageHeader::decode(longest.encode().unwrap()), longest);
        let most = MessageHeader::Taken(MessageHeader::MOST_TAKEN);
        assert_eq!(most.encode(), Ok([0xff, 0xff]));
    }

    #[test]
    fn what_no_header_can_tell_is_refused() {
        for wrong in [
            MessageHeader::Message(MAX_MESSAGE + 1),
            MessageHeader::Message(1 << 20),
            MessageHeader::Message(usize::MAX),
            MessageHeader::Taken(0),
            MessageHeader::Taken(MessageHeader::MOST_TAKEN + 1),
            MessageHeader::Taken(usize::MAX),
        ] {
            assert!(wrong.encode().is_err(), "{wrong:?}");
        }
    }
}

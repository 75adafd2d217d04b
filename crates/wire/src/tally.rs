//! How many datagrams were sent in a stretch of time.

use crate::WireError;

/// How many datagrams ([`crate::Datagram`]) of a connection belong to a stretch that is over.
///
/// The sender divides time into stretches, even and odd in turn, and marks each datagram with
/// the kind of the stretch that it belongs to. When one is over in which anything was sent, it
/// says how many there were; the first tally is of an even stretch, the next of an odd one.
/// What has not come a moment later was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams that were sent, never 0 and never more than [`Tally::MOST`].
    pub sent: u32,
}

impl Tally {
    /// Bytes it takes.
    pub const LENGTH: usize = 4;
    /// The largest one: more than any node sends in seconds. Nobody can claim to have sent
    /// billions, for what is counted as lost on his word is shown to operators.
    pub const MOST: u32 = 1 << 24;

    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        self.sent.to_be_bytes()
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// When it is of no datagram, or of more than [`Tally::MOST`].
    pub fn decode(bytes: [u8; Self::LENGTH]) -> Result<Self, WireError> {
        match u32::from_be_bytes(bytes) {
            sent @ 1..=Self::MOST => Ok(Self { sent }),
            _ => Err(WireError::Undefined {
                field: "the highest byte of a tally",
                value: bytes[0],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tally_is_read_back(sent in 1..=Tally::MOST) {
            let tally = Tally { sent };
            prop_assert_eq!(Tally::decode(tally.encode()), Ok(tally));
        }
    }

    #[test]
    fn none_is_of_nothing_or_of_billions() {
        assert!(Tally::decode([0; Tally::LENGTH]).is_err());
        assert!(Tally::decode([1, 0, 0, 0]).is_ok());
        assert!(Tally::decode([1, 0, 0, 1]).is_err());
        assert!(Tally::decode([0xff; Tally::LENGTH]).is_err());
    }
}

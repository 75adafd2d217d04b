//! A UDP datagram in a QUIC datagram, with the flow that it belongs to.

use bytes::{BufMut, Bytes, BytesMut};

use crate::WireError;
use crate::varint::{self, MAX_VARINT};

/// What a stream that a flow can have never has in its number: it is that of streams in one
/// direction (RFC 9000 section 2.1). Here it marks the datagrams of odd stretches.
const ODD: u64 = 2;

/// Most bytes that a flow's number adds to a datagram.
pub const MAX_DATAGRAM_OVERHEAD: usize = MAX_VARINT;

/// One datagram of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Number of the stream that opened the flow: both ends know it, and no other flow of the
    /// connection ever has it.
    pub flow: u64,
    /// Whether it was sent in an odd stretch of time ([`crate::Tally`]).
    pub is_odd: bool,
    /// What was sent; may be empty.
    pub payload: Bytes,
}

impl Datagram {
    /// As bytes.
    #[must_use]
    pub fn encode(flow: u64, is_odd: bool, payload: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(MAX_DATAGRAM_OVERHEAD + payload.len());
        let mark = if is_odd { ODD } else { 0 };
        varint::put(flow & !ODD | mark, &mut bytes);
        bytes.put_slice(payload);
        bytes.freeze()
    }

    /// From bytes; the payload is not copied.
    ///
    /// # Errors
    ///
    /// When there is no whole number at the front.
    pub fn decode(mut bytes: Bytes) -> Result<Self, WireError> {
        let number = varint::take(&mut bytes).ok_or(WireError::Length("datagram"))?;
        Ok(Self {
            flow: number & !ODD,
            is_odd: number & ODD != 0,
            payload: bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_datagram_is_read_back(flow in 0_u64..1 << 62, is_odd: bool, payload: Vec<u8>) {
            let flow = flow & !ODD;
            let read = Datagram::decode(Datagram::encode(flow, is_odd, &payload)).unwrap();
            prop_assert_eq!((read.flow, read.is_odd), (flow, is_odd));
            prop_assert_eq!(&*read.payload, payload.as_slice());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            let _ = Datagram::decode(bytes.into());
        }
    }

    #[test]
    fn an_empty_one_is_no_datagram() {
        assert!(Datagram::decode(Bytes::new()).is_err());
    }
}

//! What the end that sends on a TCP stream asks of the end that receives: whether that has
//! read so far.
//!
//! ```text
//! bidirectional stream of its own, on the connection of the stream it is about:
//!     sender ── ReadUpTo ───────────> receiver
//!     sender <───────────── Answer ── receiver      Connected, as soon as it has
//! ```
//!
//! Positions count the bytes of one direction from the beginning of the stream, whatever they
//! travelled by.

use bytes::{Buf, BufMut};

use crate::WireError;

/// First byte of a [`ReadUpTo`]: where a request has its protocol, and the number of none.
const READ_UP_TO: u8 = 253;
/// Bytes of a [`ReadUpTo`].
const READ_UP_TO_LENGTH: usize = 1 + 8 + 8;

/// Answer when you have read a stream up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    /// Number of the stream in the connection on which this is said.
    pub stream: u64,
    /// Position after the last byte to be read.
    pub position: u64,
}

impl ReadUpTo {
    /// As bytes, the length first as with a request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + READ_UP_TO_LENGTH);
        bytes.put_u16(READ_UP_TO_LENGTH as u16);
        bytes.put_u8(READ_UP_TO);
        bytes.put_u64(self.stream);
        bytes.put_u64(self.position);
        bytes
    }

    /// Whether the bytes after a length are one of these, not a request.
    #[must_use]
    pub fn is_one(body: &[u8]) -> bool {
        body.first() == Some(&READ_UP_TO)
    }

    /// From the bytes after the length.
    ///
    /// # Errors
    ///
    /// When they are not exactly one.
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        if body.len() != READ_UP_TO_LENGTH {
            return Err(WireError::Length("read up to"));
        }
        match body.get_u8() {
            READ_UP_TO => {}
            value => {
                return Err(WireError::Undefined {
                    field: "read up to",
                    value,
                });
            }
        }
        Ok(Self {
            stream: body.get_u64(),
            position: body.get_u64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Move, REQUEST_HEADER, Request, Resume, request_length};

    proptest! {
        #[test]
        fn a_question_is_read_back_and_is_nothing_else(stream: u64, position: u64) {
            let asked = ReadUpTo { stream, position };
            let bytes = asked.encode();
            let (header, body) = bytes.split_first_chunk::<REQUEST_HEADER>().unwrap();
            prop_assert_eq!(request_length(*header), Ok(body.len()));
            prop_assert!(ReadUpTo::is_one(body));
            prop_assert_eq!(ReadUpTo::decode(body), Ok(asked));
            prop_assert!(!Move::is_one(body) && !Resume::is_one(body));
            prop_assert!(Request::decode(body).is_err());
            prop_assert!(ReadUpTo::decode(&body[1..]).is_err());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            if let Ok(read) = ReadUpTo::decode(&bytes) {
                prop_assert_eq!(&read.encode()[REQUEST_HEADER..], &bytes[..]);
            }
        }
    }
}

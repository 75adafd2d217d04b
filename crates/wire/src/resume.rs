//! What the two ends of a TCP stream say to each other when it goes on on another connection
//! between their nodes.
//!
//! ```text
//! bidirectional stream on any connection between the two:
//!     opener ── Resume ────────────> exit
//!     opener <──────────── Answer ── exit      Connected: it goes on here
//!     opener <────── u64, position ── exit      up to there the exit has the opener's bytes
//!     then the two directions carry the bytes from those positions on, as they are
//! ```
//!
//! Positions count the bytes of one direction from the beginning of the stream, whatever they
//! travelled by.

use bytes::{Buf, BufMut};

use crate::WireError;

/// First byte of a [`Resume`]: where a request has its protocol, and the number of none.
const RESUME: u8 = 254;
/// Bytes of a [`Resume`].
const RESUME_LENGTH: usize = 1 + StreamName::LENGTH + 8 + 8;

/// By what both ends know a stream, on whatever connection it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamName {
    /// What the connection on which the stream was opened exports for this purpose (RFC 5705,
    /// as in RFC 8446 section 7.5): the same at both of its ends, and never twice.
    pub connection: [u8; Self::CONNECTION],
    /// Its number in that connection.
    pub stream: u64,
}

impl StreamName {
    /// Bytes that name a connection.
    pub const CONNECTION: usize = 16;
    /// Bytes it takes.
    const LENGTH: usize = Self::CONNECTION + 8;
}

/// Let a stream go on on this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Which one.
    pub name: StreamName,
    /// The opener can send its bytes again from this position on.
    pub kept_from: u64,
    /// Up to this position the opener has the exit's bytes.
    pub received: u64,
}

impl Resume {
    /// Bytes of the position that follows the answer.
    pub const POSITION: usize = 8;

    /// As bytes, the length first as with a request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + RESUME_LENGTH);
        bytes.put_u16(RESUME_LENGTH as u16);
        bytes.put_u8(RESUME);
        bytes.put_slice(&self.name.connection);
        bytes.put_u64(self.name.stream);
        bytes.put_u64(self.kept_from);
        bytes.put_u64(self.received);
        bytes
    }

    /// Whether the bytes after a length are one of these, not a request.
    #[must_use]
    pub fn is_one(body: &[u8]) -> bool {
        body.first() == Some(&RESUME)
    }

    /// From the bytes after the length.
    ///
    /// # Errors
    ///
    /// When they are not exactly one.
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        if body.len() != RESUME_LENGTH {
            return Err(WireError::Length("resume"));
        }
        match body.get_u8() {
            RESUME => {}
            value => {
                return Err(WireError::Undefined {
                    field: "resume",
                    value,
                });
            }
        }
        let mut connection = [0; StreamName::CONNECTION];
        body.copy_to_slice(&mut connection);
        let stream = body.get_u64();
        Ok(Self {
            name: StreamName { connection, stream },
            kept_from: body.get_u64(),
            received: body.get_u64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Move, REQUEST_HEADER, Request, request_length};

    fn resume() -> impl Strategy<Value = Resume> {
        (any::<[u8; 16]>(), any::<[u64; 3]>()).prop_map(|(connection, [stream, from, received])| {
            Resume {
                name: StreamName { connection, stream },
                kept_from: from,
                received,
            }
        })
    }

    proptest! {
        #[test]
        fn a_resume_is_read_back_and_is_nothing_else(resume in resume()) {
            let bytes = resume.encode();
            let (header, body) = bytes.split_first_chunk::<REQUEST_HEADER>().unwrap();
            prop_assert_eq!(request_length(*header), Ok(body.len()));
            prop_assert!(Resume::is_one(body));
            prop_assert_eq!(Resume::decode(body), Ok(resume));
            prop_assert!(!Move::is_one(body));
            prop_assert!(Request::decode(body).is_err());
            prop_assert!(Resume::decode(&body[1..]).is_err());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            if let Ok(read) = Resume::decode(&bytes) {
                prop_assert_eq!(&read.encode()[REQUEST_HEADER..], &bytes[..]);
            }
        }
    }
}

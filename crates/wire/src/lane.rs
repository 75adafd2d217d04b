//! What the two ends of a TCP stream say to each other to move its bytes to a lane (a TCP
//! connection with TLS of their own) and back.
//!
//! ```text
//! bidirectional stream of its own:
//!     opener ── Move ──────────────> exit
//!     opener <──────────── Answer ── exit      Connected: the lane is expected, or there
//!     then in both directions, as often as wanted: LaneWord
//! lane, the bytes within TLS:
//!     dialler ── token ────────────> listener
//!     dialler <──────── LANE_OPEN ── listener
//!     then in each direction the bytes of the stream, as they are
//! ```
//!
//! All positions count the bytes of one direction from the beginning of the stream, whatever
//! they travelled by. So nothing that a lane loses is lost, doubled or reordered.

use bytes::{Buf, BufMut};

use crate::WireError;

/// Names the protocol of lanes and its version in their TLS handshake (RFC 7301).
pub const LANE_ALPN: &[u8] = b"edgemesh-lane/1";

/// What the listener says within TLS to who brought a token that it expects.
pub const LANE_OPEN: u8 = 0x4c;

/// First byte of a [`Move`]: where a request has its protocol, and the number of none.
const MOVE: u8 = 255;
/// Bytes of a [`Move`].
const MOVE_LENGTH: usize = 1 + 8 + LaneToken::LENGTH + 1;

/// Random, and known to both ends of one stream only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneToken(pub [u8; Self::LENGTH]);

impl LaneToken {
    /// Bytes it takes.
    pub const LENGTH: usize = 16;
}

impl std::fmt::Debug for LaneToken {
    /// Says nothing: who knows it may take the place of the lane.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneToken")
    }
}

/// Which end makes the lane's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialler {
    /// The one that opened the stream.
    Opener,
    /// The one that dialled the endpoint.
    Exit,
}

/// Let a stream have a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Number of the stream in the connection on which this is said.
    pub stream: u64,
    /// By what the lane is known as this stream's.
    pub token: LaneToken,
    /// Who dials.
    pub dialler: Dialler,
}

impl Move {
    /// As bytes, the length first as with a request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + MOVE_LENGTH);
        bytes.put_u16(MOVE_LENGTH as u16);
        bytes.put_u8(MOVE);
        bytes.put_u64(self.stream);
        bytes.put_slice(&self.token.0);
        bytes.put_u8(match self.dialler {
            Dialler::Opener => 0,
            Dialler::Exit => 1,
        });
        bytes
    }

    /// Whether the bytes after a length are one of these, not a request.
    #[must_use]
    pub fn is_one(body: &[u8]) -> bool {
        body.first() == Some(&MOVE)
    }

    /// From the bytes after the length.
    ///
    /// # Errors
    ///
    /// When they are not exactly one.
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        if body.len() != MOVE_LENGTH {
            return Err(WireError::Length("move"));
        }
        match body.get_u8() {
            MOVE => {}
            value => {
                return Err(WireError::Undefined {
                    field: "move",
                    value,
                });
            }
        }
        let stream = body.get_u64();
        let mut token = [0; LaneToken::LENGTH];
        body.copy_to_slice(&mut token);
        let dialler = match body.get_u8() {
            0 => Dialler::Opener,
            1 => Dialler::Exit,
            value => {
                return Err(WireError::Undefined {
                    field: "dialler",
                    value,
                });
            }
        };
        Ok(Self {
            stream,
            token: LaneToken(token),
            dialler,
        })
    }
}

/// What the ends of a lane tell each other, beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneWord {
    /// Sender: from this position on the bytes go by the lane.
    Switch(u64),
    /// Sender: from this position on they are to go by the stream again.
    Back(u64),
    /// Sender: nothing more goes by the lane, for it is broken or goes too slowly.
    Gone,
    /// Sender, who misses an answer: all before this position has left this node. When
    /// nothing of it arrives, the lane is dead.
    Sent(u64),
    /// Receiver: all before this position has been passed on; the sender may forget it.
    Taken(u64),
    /// Receiver, once it has come so far, or the lane is broken: nothing more is read from
    /// the lane, and the bytes from this position on are expected by the stream. The sender
    /// sends none there before it has heard this.
    Left(u64),
}

impl LaneWord {
    /// Bytes that each takes.
    pub const LENGTH: usize = 9;

    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let (kind, position) = match self {
            Self::Switch(at) => (1, at),
            Self::Back(at) => (2, at),
            Self::Gone => (3, 0),
            Self::Taken(to) => (4, to),
            Self::Left(at) => (5, at),
            Self::Sent(to) => (6, to),
        };
        let mut bytes = [0; Self::LENGTH];
        let mut rest = &mut bytes[..];
        rest.put_u8(kind);
        rest.put_u64(position);
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// When they are none.
    pub fn decode(bytes: [u8; Self::LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let (kind, position) = (rest.get_u8(), rest.get_u64());
        match kind {
            1 => Ok(Self::Switch(position)),
            2 => Ok(Self::Back(position)),
            3 if position == 0 => Ok(Self::Gone),
            4 => Ok(Self::Taken(position)),
            5 => Ok(Self::Left(position)),
            6 => Ok(Self::Sent(position)),
            value => Err(WireError::Undefined {
                field: "lane word",
                value,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{REQUEST_HEADER, Request, request_length};

    fn word() -> impl Strategy<Value = LaneWord> {
        prop_oneof![
            any::<u64>().prop_map(LaneWord::Switch),
            any::<u64>().prop_map(LaneWord::Back),
            Just(LaneWord::Gone),
            any::<u64>().prop_map(LaneWord::Taken),
            any::<u64>().prop_map(LaneWord::Left),
            any::<u64>().prop_map(LaneWord::Sent),
        ]
    }

    fn a_move() -> impl Strategy<Value = Move> {
        (any::<u64>(), any::<[u8; 16]>(), any::<bool>()).prop_map(|(stream, token, exit)| Move {
            stream,
            token: LaneToken(token),
            dialler: if exit { Dialler::Exit } else { Dialler::Opener },
        })
    }

    proptest! {
        #[test]
        fn a_move_is_read_back_and_is_no_request(a_move in a_move()) {
            let bytes = a_move.encode();
            let (header, body) = bytes.split_first_chunk::<REQUEST_HEADER>().unwrap();
            prop_assert_eq!(request_length(*header), Ok(body.len()));
            prop_assert!(Move::is_one(body));
            prop_assert_eq!(Move::decode(body), Ok(a_move));
            prop_assert!(Request::decode(body).is_err());
            prop_assert!(Move::decode(&body[1..]).is_err());
        }

        #[test]
        fn a_word_is_read_back(word in word()) {
            prop_assert_eq!(LaneWord::decode(word.encode()), Ok(word));
        }

        #[test]
        fn what_is_read_as_a_word_is_what_is_written_for_it(bytes: [u8; LaneWord::LENGTH]) {
            if let Ok(word) = LaneWord::decode(bytes) {
                prop_assert_eq!(word.encode(), bytes);
            }
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            if let Ok(read) = Move::decode(&bytes) {
                prop_assert_eq!(&read.encode()[REQUEST_HEADER..], &bytes[..]);
            }
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", LaneToken([7; 16])), "LaneToken");
    }
}

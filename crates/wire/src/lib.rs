//! What two agents say to each other, as bytes. Pure: no I/O.
//!
//! ```text
//! unidirectional stream, first thing on each connection:   Hello, then Tallies
//! bidirectional stream, one per connection or flow:
//!     opener ── Request ──────────────────────> exit
//!     opener <───────────────────── Answer ──── exit
//!     TCP: the two directions carry the bytes as they are; the opener's may follow the request at
//!     once: none goes to the endpoint unless the answer is Connected
//!     UDP: the two directions carry Messages, those datagrams that fit into no packet, and how
//!     many of the other direction were taken
//!     or, instead of a request: Move (a lane for a TCP stream), Resume (a TCP stream goes on),
//!     ReadUpTo (has the other end read so far?)
//! QUIC datagram: Datagram, one UDP datagram of the flow with that stream; a Tally tells later
//!     how many there were
//! ```
//!
//! The version of all of it is the name that both ends agree on in the handshake ([`ALPN`]):
//! what is not exactly as written here is an offence, not a newer version.
//!
//! Outside the tunnel there is only [`Probe`] and [`ProbeAnswer`].

mod answer;
mod datagram;
mod hello;
mod lane;
mod message;
mod probe;
mod read_up_to;
mod request;
mod resume;
mod tally;
mod varint;

pub use answer::Answer;
pub use datagram::{Datagram, MAX_DATAGRAM_OVERHEAD};
pub use hello::Hello;
pub use lane::{Dialler, LANE_ALPN, LANE_OPEN, LaneToken, LaneWord, Move};
pub use message::{MAX_MESSAGE, MESSAGE_HEADER, MessageHeader};
pub use probe::{Probe, ProbeAnswer};
pub use read_up_to::ReadUpTo;
pub use request::{MAX_REQUEST, REQUEST_HEADER, Request, request_length};
pub use resume::{Resume, StreamName};
pub use tally::Tally;

/// Names this protocol and its version in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"edgemesh/3";

/// Bytes that are not what the other end should have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is longer than it may ever be.
    #[error("{what} says it is {length} bytes long; at most {most} are allowed")]
    TooLong {
        /// What was read.
        what: &'static str,
        /// The length it claims.
        length: usize,
        /// The longest allowed.
        most: usize,
    },
    /// It ends before it should, or goes on after.
    #[error("{0} is not as long as its fields say")]
    Length(&'static str),
    /// A field holds a value that is none of those defined.
    #[error("{field} holds {value}, which is not defined")]
    Undefined {
        /// Which field.
        field: &'static str,
        /// What stands in it.
        value: u8,
    },
    /// A name is not text.
    #[error("{0} is not UTF-8 text")]
    NotText(&'static str),
}

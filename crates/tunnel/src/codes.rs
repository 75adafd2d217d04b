//! Numbers that tell the other end why a connection or a stream was ended (RFC 9000,
//! application error codes).

use iroh::endpoint::VarInt;

/// The agent is ending.
pub(crate) const ENDING: VarInt = VarInt::from_u32(1);
/// The other end is no peer, or not any more.
pub(crate) const NOT_A_PEER: VarInt = VarInt::from_u32(2);
/// A newer connection, or a newer run of the agent, has taken its place.
pub(crate) const SUPERSEDED: VarInt = VarInt::from_u32(3);
/// Nobody used it.
pub(crate) const UNUSED: VarInt = VarInt::from_u32(4);
/// The other end does not keep to the protocol.
pub(crate) const OFFENCE: VarInt = VarInt::from_u32(5);

/// A stream's connection was reset.
pub(crate) const RESET: VarInt = VarInt::from_u32(16);
/// The endpoint of a UDP flow refused.
pub(crate) const FLOW_REFUSED: VarInt = VarInt::from_u32(17);

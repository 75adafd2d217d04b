//! Sockets towards endpoints, and the buffers that data moves through.
//!
//! Both ends of a connection need them: the forwarder, which dials what this node reaches
//! itself, and the tunnel's exit, which dials on behalf of other nodes. All carry the agent's
//! mark, so that its own rules let them pass.

mod accept;
mod buffers;
mod datagram_batch;
mod datagram_run;
mod datagrams;
mod first_bytes;
mod outward;
mod pipes;
mod reset_on_drop;

pub use accept::accept_now;
pub use buffers::{STREAM_BUFFER, StreamBuffer, with_datagram_buffer};
pub use datagram_batch::{DatagramBatch, join_datagrams};
pub use datagram_run::{DatagramRun, SegmentLimit};
pub use datagrams::{await_datagram, receive_now, send_now, send_to_now};
pub use first_bytes::{look_at, take_seen};
pub use outward::{EndpointAddr, OutwardSockets, has_data, open, tune};
pub use pipes::{LentPipe, PipePool};
pub use reset_on_drop::{
    ResetOnDrop, ResetUnlessKept, broken, end_stream, send_last, send_last_pieces, watch_here,
};

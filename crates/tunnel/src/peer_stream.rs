//! A stream to or from a peer, that ends as truthfully as a socket of ours.

use iroh::endpoint::{RecvStream, SendStream};

use crate::codes;
use crate::inflow::Inflow;

/// Both directions of a stream. Dropped before [`PeerStream::close_in_order`] it is reset in
/// both: QUIC would otherwise end what was sent so far as if it were all (a `SendStream` that
/// is dropped is finished).
#[derive(Debug)]
pub(crate) struct PeerStream {
    pub(crate) send: SendStream,
    pub(crate) recv: Inflow,
    in_order: bool,
}

impl PeerStream {
    pub(crate) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            send,
            recv: Inflow::new(recv),
            in_order: false,
        }
    }

    /// Number of the stream in its connection.
    pub(crate) fn number(&self) -> u64 {
        self.send.id().into()
    }

    /// Both directions have come to their end.
    pub(crate) fn close_in_order(mut self) {
        self.in_order = true;
    }

    /// Resets it for `code`.
    pub(crate) fn abort(&mut self, code: iroh::endpoint::VarInt) {
        self.in_order = true;
        // Either may have ended already.
        let _ = self.send.reset(code);
        self.recv.stop(code);
    }
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        if !self.in_order {
            self.abort(codes::RESET);
        }
    }
}

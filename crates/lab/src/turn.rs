//! The pace of requests that go on as long as something else does.

use std::thread;
use std::time::Duration;

/// Between one request and the next of the same client.
const TURN: Duration = Duration::from_millis(1);

/// Waits until the next request of a client is due that asks again and again: a millisecond.
///
/// Of every connection something is left that the kernel frees after an RCU grace period. Clients
/// that make connections as fast as they can delay these periods from milliseconds to seconds,
/// and with them whatever waits for one on the whole machine: every change of nf_tables rules,
/// every socket that spoke with nf_tables and is closed, and who waits for a lock that such a one
/// holds, as for addresses and routes.
pub fn await_turn() {
    thread::park_timeout(TURN);
}

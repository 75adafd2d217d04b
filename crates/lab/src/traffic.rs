//! Traffic whose every byte is accounted for: transfers, many connections, datagrams,
//! requests in a loop, and a connection that is held through whatever happens.
//!
//! Servers are those of [`crate::Serve`]: each method says which one it talks to. Clients
//! run in this process, on threads inside the namespace of the place.

mod connections;
mod datagram_ledger;
mod datagrams;
mod held;
mod latencies;
mod pattern;
mod request_loop;
mod transfer;

use std::time::Duration;

use anyhow::Result;

pub use connections::Connections;
pub use datagram_ledger::DatagramReport;
pub use datagrams::Burst;
pub use held::{HeldConnection, HeldReport};
pub use latencies::Latencies;
pub(crate) use pattern::serve_pattern;
pub use request_loop::{Request, RequestLog, RequestLoop};
pub use transfer::Transfer;

use crate::client::{Place, ToSocket};
use crate::service::Protocol;

/// What a place can send.
pub trait Traffic: Place {
    /// Asks a [`crate::Serve::Pattern`] server for `bytes` bytes, ends the own half of the
    /// connection, and checks all that comes over the other half, to its end. The server begins
    /// only after the half-close has reached it.
    ///
    /// # Errors
    ///
    /// When it can't connect, the connection breaks, nothing comes for 60 s; at the first byte
    /// that is wrong, missing or too much, with its place.
    fn download(&self, to: impl ToSocket, seed: u64, bytes: u64) -> Result<Transfer>
    where
        Self: Sized,
    {
        transfer::download(self, to.to_socket()?, seed, bytes)
    }

    /// Sends a [`crate::Serve::Pattern`] server `bytes` bytes, ends the own half of the
    /// connection, and reads whether all of them arrived.
    ///
    /// # Errors
    ///
    /// As [`Self::download`], with what the server saw.
    fn upload(&self, to: impl ToSocket, seed: u64, bytes: u64) -> Result<Transfer>
    where
        Self: Sized,
    {
        transfer::upload(self, to.to_socket()?, seed, bytes)
    }

    /// Sends a [`crate::Serve::Echo`] server `bytes` bytes while it checks those that come back:
    /// both directions are busy at once.
    ///
    /// # Errors
    ///
    /// As [`Self::download`].
    fn exchange(&self, to: impl ToSocket, seed: u64, bytes: u64) -> Result<Transfer>
    where
        Self: Sized,
    {
        transfer::exchange(self, to.to_socket()?, seed, bytes)
    }

    /// Opens `count` connections to a [`crate::Serve::Echo`] server, and when all are open, sends
    /// `bytes` bytes over each and checks that its own come back. Each has a thread.
    ///
    /// # Errors
    ///
    /// When the place can't be entered or threads can't be had; connections that fail are in the
    /// report.
    fn connect_at_once(&self, to: impl ToSocket, count: usize, bytes: usize) -> Result<Connections>
    where
        Self: Sized,
    {
        connections::at_once(self, to.to_socket()?, count, bytes)
    }

    /// Opens, uses and closes `count` connections to a [`crate::Serve::Echo`] server, of which
    /// `workers` exist at a time; `bytes` bytes go over each and are checked as they come back.
    ///
    /// # Errors
    ///
    /// As [`Self::connect_at_once`].
    fn connect_in_turn(
        &self,
        to: impl ToSocket,
        count: u64,
        workers: usize,
        bytes: usize,
    ) -> Result<Connections>
    where
        Self: Sized,
    {
        connections::in_turn(self, to.to_socket()?, count, workers, bytes)
    }

    /// Sends a [`crate::Serve::UdpEcho`] server one datagram of each size after another, from one
    /// socket, and checks what comes back. The largest that UDP over IPv4 can carry has 65507
    /// bytes.
    ///
    /// # Errors
    ///
    /// The kernel's for the socket, and for a size that it can't send.
    fn datagrams_of(
        &self,
        to: impl ToSocket,
        sizes: impl IntoIterator<Item = usize>,
    ) -> Result<DatagramReport>
    where
        Self: Sized,
    {
        datagrams::each_size(self, to.to_socket()?, sizes)
    }

    /// Sends a [`crate::Serve::UdpEcho`] server a burst, and checks what comes back until all
    /// did or nothing came for 2 s.
    ///
    /// # Errors
    ///
    /// The kernel's for the sockets; when threads can't be had.
    fn burst(&self, to: impl ToSocket, burst: Burst) -> Result<DatagramReport>
    where
        Self: Sized,
    {
        datagrams::burst(self, to.to_socket()?, burst)
    }

    /// Holds a connection to a [`crate::Serve::Echo`] server, over which a number goes `every`
    /// so often.
    ///
    /// # Errors
    ///
    /// When there is no connection within 5 s.
    fn hold(&self, to: impl ToSocket, every: Duration) -> Result<HeldConnection>
    where
        Self: Sized,
    {
        HeldConnection::open(self, to.to_socket()?, every)
    }

    /// Begins to ask an identity server ([`crate::Serve::Identity`],
    /// [`crate::Serve::UdpIdentity`]) again and again, `pause` after each answer, and gives
    /// each request `patience`.
    ///
    /// # Errors
    ///
    /// When a thread can't be had.
    fn keep_asking(
        &self,
        protocol: Protocol,
        to: impl ToSocket,
        pause: Duration,
        patience: Duration,
    ) -> Result<RequestLoop>
    where
        Self: Sized,
    {
        RequestLoop::start(self, protocol, to.to_socket()?, (pause, patience))
    }
}

impl<P: Place> Traffic for P {}

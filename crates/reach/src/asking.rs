//! The sockets by which this node asks.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use edgemesh_catalog::KeySignature;
use edgemesh_tunnel::{NodeKey, is_signed_by};
use edgemesh_wire::{Probe, ProbeAnswer};
use tokio::net::UdpSocket;

use crate::answering::{bind, unix_now};
use crate::prober::{Asked, Due};

/// Sends probes, and reads what comes back.
#[derive(Debug)]
pub(crate) struct Asking {
    key: NodeKey,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    chance: File,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Came {
    pub(crate) from: SocketAddr,
    pub(crate) answer: ProbeAnswer,
}

impl Asking {
    /// Opens the sockets, of IPv4 and IPv6 as far as this host has them.
    ///
    /// # Errors
    ///
    /// When it has neither, or no random numbers.
    pub(crate) fn open(key: NodeKey, mark: Option<u32>) -> io::Result<Self> {
        let open = |at: SocketAddr| bind(at, mark);
        let v4 = open((Ipv4Addr::UNSPECIFIED, 0).into());
        let v6 = open((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
        let v4 = match v4 {
            Err(error) if v6.is_none() => return Err(error),
            other => other.ok(),
        };
        Ok(Self {
            key,
            v4,
            v6,
            chance: File::open("/dev/urandom")?,
        })
    }

    /// Sends a probe. Its nonce and its bytes.
    ///
    /// # Errors
    ///
    /// When there is no way there.
    pub(crate) async fn ask(
        &mut self,
        due: &Due,
    ) -> io::Result<([u8; 32], Box<[u8; Probe::LENGTH]>)> {
        let socket = match due.address {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => &self.v6,
        };
        let socket = socket.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut nonce = [0; 32];
        self.chance.read_exact(&mut nonce)?;
        let probe = Probe {
            nonce,
            from: self.key.public(),
            to: due.key,
            address: due.address,
            sent_at: unix_now(),
        };
        let bytes = probe.encode(&self.key.sign(&probe.to_sign()));
        socket.send_to(&bytes, due.address).await?;
        Ok((nonce, Box::new(bytes)))
    }

    /// Waits for something that looks like an answer; none for anything else that came. Safe
    /// to cancel.
    pub(crate) async fn next(&self) -> Option<Came> {
        let mut v4 = [0; ProbeAnswer::LENGTH + 1];
        let mut v6 = v4;
        let (received, buffer) = tokio::select! {
            received = receive(self.v4.as_ref(), &mut v4) => (received, &v4),
            received = receive(self.v6.as_ref(), &mut v6) => (received, &v6),
        };
        let (length, from) = received.ok()?;
        Came::read(buffer.get(..length)?, from)
    }

    /// As [`Self::next`], without waiting: what has come already, if anything.
    pub(crate) fn here(&self) -> Option<Option<Came>> {
        let mut buffer = [0; ProbeAnswer::LENGTH + 1];
        let mut sockets = [&self.v4, &self.v6].into_iter().flatten();
        let (length, from) = sockets.find_map(|socket| socket.try_recv_from(&mut buffer).ok())?;
        Some(
            buffer
                .get(..length)
                .and_then(|bytes| Came::read(bytes, from)),
        )
    }
}

impl Came {
    fn read(bytes: &[u8], from: SocketAddr) -> Option<Self> {
        let answer = ProbeAnswer::decode(bytes).ok()?;
        Some(Self { from, answer })
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// Whether what came proves that who was asked for is where it was asked for.
pub(crate) fn is_proof(came: &Came, asked: &Asked) -> bool {
    let from = SocketAddr::new(came.from.ip(), came.from.port());
    let signature: &KeySignature = &came.answer.signature;
    from == asked.due.address
        && is_signed_by(
            &asked.due.key,
            &ProbeAnswer::to_sign(&asked.bytes),
            signature,
        )
}

//! Makes a TCP connection a lane: TLS 1.3, both ends prove their keys, and the token tells
//! which stream it is for.

use std::io;
use std::sync::Arc;

use edgemesh_catalog::PublicKey;
use edgemesh_wire::{LANE_ALPN, LANE_OPEN, LaneToken};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
};

use super::key_proof::shown_key;
use super::record::{HEADER, LONGEST, Opener, RecordFault, Sealer, record_length};

/// Longest record of a handshake: in the clear it carries 2^14 bytes at most.
const LONGEST_OF_HANDSHAKE: usize = LONGEST;

/// A TCP connection whose other end has proved a key, and the keys to its records.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) tcp: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    /// The key that the other end has proved.
    pub(super) key: PublicKey,
}

/// Why a connection did not become a lane.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeFault {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Record(#[from] RecordFault),
    #[error("it speaks another protocol within TLS")]
    Protocol,
    #[error("it has shown no key")]
    NoKey,
    #[error("nobody waits for it")]
    NotExpected,
    #[error("it says something else than that the lane is open")]
    NotOpen,
}

impl Secured {
    /// Proves this node's key to the listener at the other end of `tcp`, which has to prove
    /// the one that `tls` expects.
    pub(super) async fn dialled(
        tcp: TcpStream,
        tls: Arc<ClientConfig>,
    ) -> Result<Self, HandshakeFault> {
        // Nobody is asked by name; the key says who it is.
        let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
        shake_hands(tcp, ClientConnection::new(tls, name)?.into()).await
    }

    /// The same from the other side.
    pub(super) async fn accepted(
        tcp: TcpStream,
        tls: Arc<ServerConfig>,
    ) -> Result<Self, HandshakeFault> {
        shake_hands(tcp, ServerConnection::new(tls)?.into()).await
    }

    /// Says which stream the lane is for, and waits until the listener agrees.
    pub(super) async fn present(&mut self, token: LaneToken) -> Result<(), HandshakeFault> {
        self.send(&token.0).await?;
        if self.receive::<1>().await? == [LANE_OPEN] {
            Ok(())
        } else {
            Err(HandshakeFault::NotOpen)
        }
    }

    /// Waits to hear which stream the lane is for.
    pub(super) async fn token(&mut self) -> Result<LaneToken, HandshakeFault> {
        self.receive().await.map(LaneToken)
    }

    /// Agrees.
    pub(super) async fn open(&mut self) -> Result<(), HandshakeFault> {
        self.send(&[LANE_OPEN]).await
    }

    async fn send(&mut self, plain: &[u8]) -> Result<(), HandshakeFault> {
        let mut record = Vec::new();
        self.sealer.seal(plain, &mut record)?;
        Ok(self.tcp.write_all(&record).await?)
    }

    async fn receive<const N: usize>(&mut self) -> Result<[u8; N], HandshakeFault> {
        let mut record = Vec::new();
        read_record(&mut self.tcp, &mut record).await?;
        // The header is one of encrypted content.
        record_length(&record)?;
        let plain = self.opener.open(&mut record)?;
        record[plain]
            .try_into()
            .map_err(|_| HandshakeFault::Protocol)
    }
}

async fn shake_hands(mut tcp: TcpStream, mut tls: Connection) -> Result<Secured, HandshakeFault> {
    let mut record = Vec::new();
    loop {
        while tls.wants_write() {
            let mut flight = Vec::new();
            tls.write_tls(&mut flight)?;
            tcp.write_all(&flight).await?;
        }
        if !tls.is_handshaking() {
            break;
        }
        read_record(&mut tcp, &mut record).await?;
        let mut rest = &record[..];
        while !rest.is_empty() {
            tls.read_tls(&mut rest)?;
            if let Err(error) = tls.process_new_packets() {
                // What the other end did wrong; it may not hear it any more.
                let mut alert = Vec::new();
                tls.write_tls(&mut alert)?;
                let _ = tcp.write_all(&alert).await;
                return Err(error.into());
            }
        }
    }
    if tls.alpn_protocol() != Some(LANE_ALPN) {
        return Err(HandshakeFault::Protocol);
    }
    let shown = tls.peer_certificates().and_then(|shown| shown.first());
    let key = shown
        .and_then(|shown| shown_key(shown))
        .ok_or(HandshakeFault::NoKey)?;
    let secrets = tls.dangerous_extract_secrets()?;
    Ok(Secured {
        tcp,
        sealer: Sealer::new(secrets.tx)?,
        opener: Opener::new(secrets.rx)?,
        key,
    })
}

/// Reads exactly one record: what comes after the handshake's last is not for rustls.
async fn read_record(tcp: &mut TcpStream, record: &mut Vec<u8>) -> Result<(), HandshakeFault> {
    record.resize(HEADER, 0);
    tcp.read_exact(record).await?;
    let length = HEADER + usize::from(u16::from_be_bytes([record[3], record[4]]));
    if length > LONGEST_OF_HANDSHAKE {
        return Err(RecordFault::TooLong.into());
    }
    record.resize(length, 0);
    tcp.read_exact(&mut record[HEADER..]).await?;
    Ok(())
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;

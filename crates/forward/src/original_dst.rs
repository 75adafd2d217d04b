//! Where a connection was meant to go before the kernel translated its destination.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use socket2::SockRef;

use crate::addrs::{ListenAddr, OriginalDst};

/// How the original destination of a connection that a listener accepted is found out.
pub type ResolveOriginalDst =
    Arc<dyn Fn(&TcpStream, ListenAddr) -> io::Result<OriginalDst> + Send + Sync>;

/// Asks the kernel's connection tracking (`SO_ORIGINAL_DST`, netfilter's
/// `nf_conntrack_proto.c`). A connection that was not translated gives the listener's own
/// address.
#[must_use]
pub fn from_conntrack() -> ResolveOriginalDst {
    Arc::new(|stream, listener| {
        let address = match original_dst(stream, listener) {
            // Not tracked, hence not translated.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(listener.0),
            told => told,
        }?;
        // The scope that the kernel adds to some is no part of a portal's address.
        Ok(OriginalDst(SocketAddr::new(address.ip(), address.port())))
    })
}

fn original_dst(stream: &TcpStream, listener: ListenAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match listener.0 {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

//! Where a connection was meant to go before the kernel translated its destination.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::addrs::OriginalDst;

/// How the original destination of an accepted connection is found out.
pub type ResolveOriginalDst = Arc<dyn Fn(&TcpStream) -> io::Result<OriginalDst> + Send + Sync>;

/// Asks the kernel's connection tracking (`SO_ORIGINAL_DST`, netfilter's
/// `nf_conntrack_proto.c`). A connection that was not translated gives the listener's own
/// address, or an error where connections are not tracked.
#[must_use]
pub fn from_conntrack() -> ResolveOriginalDst {
    Arc::new(|stream| original_dst(stream))
}

fn original_dst(stream: &TcpStream) -> io::Result<OriginalDst> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address
        .as_socket()
        // The scope that the kernel adds is no part of a portal's address.
        .map(|address| OriginalDst(SocketAddr::new(address.ip(), address.port())))
        .ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

//! The sockets that clients come in by.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use edgemesh_sockets::{open, tune};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use crate::addrs::ListenAddr;

/// Connections that may wait in the kernel until we accept them (it caps this at
/// `net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// Asked for on UDP portals, where a whole burst of all clients meets in one socket; the kernel
/// caps it at `net.core.rmem_max`.
const UDP_BUFFER: usize = 4 << 20;

/// `many` TCP listeners (at least one) at one address, listening; the kernel spreads
/// connections over them. What a connection is tuned to, it has from its listener.
pub(crate) fn listen_tcp(
    at: ListenAddr,
    many: usize,
) -> io::Result<(ListenAddr, Vec<TcpListener>)> {
    let first = tcp_listener(at)?;
    // Bound before it shares its port: so a port is found taken that another agent shares
    // among its own listeners.
    first.bind(&at.0.into())?;
    let bound = first.local_addr()?;
    let bound = bound.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut listeners = vec![first];
    for _ in 1..many {
        let next = tcp_listener(at)?;
        next.set_reuse_port(true)?;
        listeners.push(next);
    }
    for (place, listener) in listeners.iter().enumerate() {
        if place > 0 {
            listener.bind(&bound.into())?;
        } else if many > 1 {
            listener.set_reuse_port(true)?;
        }
        listener.listen(BACKLOG)?;
    }
    let listeners = listeners.into_iter().map(TcpListener::from).collect();
    Ok((ListenAddr(bound), listeners))
}

fn tcp_listener(at: ListenAddr) -> io::Result<Socket> {
    let socket = inward(at.0, Type::STREAM)?;
    // Connections of an earlier run in TIME_WAIT are no reason not to start.
    socket.set_reuse_address(true)?;
    tune(&socket)?;
    Ok(socket)
}

/// A UDP socket bound to `at`.
pub(crate) fn bind_udp(at: ListenAddr) -> io::Result<UdpSocket> {
    let socket = inward(at.0, Type::DGRAM)?;
    // More is welcome, the default will do.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    socket.bind(&at.0.into())?;
    UdpSocket::from_std(socket.into())
}

/// A TCP socket that holds its port and nothing more: who connects is reset by the kernel.
pub(crate) fn reserve_tcp(at: SocketAddr) -> io::Result<Socket> {
    let socket = inward(at, Type::STREAM)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// A UDP socket that holds its port and receives from nobody but itself: who sends to it
/// is told by the kernel that the port is unreachable.
pub(crate) fn reserve_udp(at: SocketAddr) -> io::Result<Socket> {
    let socket = inward(at, Type::DGRAM)?;
    socket.bind(&at.into())?;
    socket.connect(&at.into())?;
    Ok(socket)
}

/// The address that leaves the port to the kernel.
pub(crate) fn any_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

fn inward(at: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = open(Domain::for_address(at), kind)?;
    // The intercept address may be put on its device, or put back, a moment after us.
    match at.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {}
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

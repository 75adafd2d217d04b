//! A UDP socket that answers from the address it was asked at.
//!
//! A host has several addresses, and the kernel answers from the one that suits the way back.
//! A client behind NAT knows only the one that was asked, and so do good servers (`IP_PKTINFO`,
//! ip(7); `IPV6_PKTINFO`, ipv6(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use socket2::SockRef;

/// As much as one gets: bursts shall not be lost here.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The socket.
#[derive(Debug)]
pub(crate) struct AnsweringSocket {
    socket: UdpSocket,
}

/// At which address of this host a datagram arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AskedAt {
    V4(in_pktinfo),
    V6(in6_pktinfo),
    /// The kernel did not tell.
    Unknown,
}

impl AnsweringSocket {
    /// Bound to `address`, or all addresses; gives up waiting for a datagram after `patience`.
    pub(crate) fn bind(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(patience))?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self { socket })
    }

    /// The next datagram's length, its sender, and where it arrived.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, AskedAt)> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(in_pktinfo, in6_pktinfo);
        let flags = MsgFlags::empty();
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
        let asked_at = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(AskedAt::V4(info)),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(AskedAt::V6(info)),
            _ => None,
        });
        let from = message.address.as_ref().and_then(address);
        let from = from.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
        Ok((message.bytes, from, asked_at.unwrap_or(AskedAt::Unknown)))
    }

    /// Sends `datagram` to `client` from where it asked.
    pub(crate) fn answer(
        &self,
        datagram: &[u8],
        client: SocketAddr,
        asked_at: AskedAt,
    ) -> io::Result<()> {
        let parts = [IoSlice::new(datagram)];
        let (v4, v6);
        let control = match asked_at {
            // Which way back is the kernel's to choose.
            AskedAt::V4(info) => {
                v4 = in_pktinfo {
                    ipi_ifindex: 0,
                    ..info
                };
                Some(ControlMessage::Ipv4PacketInfo(&v4))
            }
            AskedAt::V6(info) => {
                v6 = in6_pktinfo {
                    ipi6_ifindex: 0,
                    ..info
                };
                Some(ControlMessage::Ipv6PacketInfo(&v6))
            }
            AskedAt::Unknown => None,
        };
        let to = SockaddrStorage::from(client);
        let fd = self.socket.as_raw_fd();
        sendmsg(fd, &parts, control.as_slice(), MsgFlags::empty(), Some(&to))?;
        Ok(())
    }
}

fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = of.as_sockaddr_in() {
        return Some((v4.ip(), v4.port()).into());
    }
    let v6 = of.as_sockaddr_in6()?;
    Some((v6.ip(), v6.port()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_answered_from_the_address_that_it_asked() {
        let server =
            AnsweringSocket::bind("0.0.0.0:0".parse().unwrap(), Duration::from_secs(5)).unwrap();
        let port = server.socket.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        client.send_to(b"hello", ("127.0.0.7", port)).unwrap();
        let mut buffer = [0; 64];
        let (length, from, asked_at) = server.receive(&mut buffer).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        server.answer(&buffer[..length], from, asked_at).unwrap();
        let (length, by) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], by),
            (&b"hello"[..], ([127, 0, 0, 7], port).into())
        );
    }
}

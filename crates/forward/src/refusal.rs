//! The port that refuses: where portals without endpoints lead to.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::Socket;

use crate::socket::{any_port, reserve_tcp, reserve_udp};

/// A port on the intercept address that is ours and that nobody serves, for TCP and UDP alike.
/// The kernel refuses whoever is sent there, at once.
#[derive(Debug)]
pub(crate) struct RefusalPort {
    port: u16,
    /// Held so that nobody else gets the port.
    _reserved: [Socket; 2],
}

impl RefusalPort {
    /// Somebody may hold the UDP port of the TCP port that the kernel gave.
    const ATTEMPTS: u32 = 16;

    pub(crate) fn reserve(ip: IpAddr) -> io::Result<Self> {
        let mut last = None;
        for _ in 0..Self::ATTEMPTS {
            match Self::reserve_any(ip) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    fn reserve_any(ip: IpAddr) -> io::Result<Self> {
        let tcp = reserve_tcp(any_port(ip))?;
        let port = tcp
            .local_addr()?
            .as_socket()
            .map(|address| address.port())
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let udp = reserve_udp(SocketAddr::new(ip, port))?;
        Ok(Self {
            port,
            _reserved: [tcp, udp],
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn tcp_and_udp_are_refused_at_once_in_both_families() {
        for ip in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()] {
            let refusal = RefusalPort::reserve(ip).unwrap();
            let address = SocketAddr::new(ip, refusal.port());
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

            let client = UdpSocket::bind(any_port(ip)).unwrap();
            client.connect(address).unwrap();
            client.send(b"anybody?").unwrap();
            let error = client.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn nobody_else_gets_the_port() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let refusal = RefusalPort::reserve(ip).unwrap();
        let address = SocketAddr::new(ip, refusal.port());
        assert!(std::net::TcpListener::bind(address).is_err());
        assert!(UdpSocket::bind(address).is_err());
    }
}

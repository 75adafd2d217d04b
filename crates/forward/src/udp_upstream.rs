//! Where a UDP flow's datagrams go, and where its answers come from.

use std::io;

use edgemesh_plan::Way;
use edgemesh_sockets::{await_datagram, receive_now, send_now, with_datagram_buffer};
use edgemesh_tunnel::{SendFault, UdpFlow};
use tokio::net::UdpSocket;

use crate::dial::fault_of;
use crate::reasons::{DialFault, Dropped};
use crate::ways::tunnel_fault;

/// The flow's way to its endpoint.
#[derive(Debug)]
pub(crate) enum UdpUpstream {
    Socket(UdpSocket),
    Tunnel(Box<UdpFlow>),
}

/// What became of a datagram on its way to the endpoint.
#[derive(Debug)]
pub(crate) enum Sent {
    Yes,
    /// Lost, as datagrams may be.
    Dropped(Dropped),
    /// The endpoint is not to be reached; the datagram has not been sent.
    Failed(DialFault),
}

/// What there was to receive.
#[derive(Debug)]
pub(crate) enum Received {
    /// A datagram, which was handed over.
    Datagram,
    /// Something about a single datagram, such as its size.
    Nothing,
    /// No more for now.
    Empty,
    /// The endpoint is not to be reached any more.
    Failed(DialFault),
}

impl UdpUpstream {
    /// Which of the ways it is.
    pub(crate) fn way(&self) -> Way {
        match self {
            Self::Socket(_) => Way::Native,
            Self::Tunnel(_) => Way::Tunnel,
        }
    }

    /// Sends a datagram, or drops it. Never waits.
    pub(crate) fn send(&self, datagram: &[u8]) -> Sent {
        match self {
            Self::Socket(socket) => send_to_socket(socket, datagram),
            Self::Tunnel(flow) => match flow.send(datagram) {
                Ok(()) => Sent::Yes,
                Err(SendFault::Full) => Sent::Dropped(Dropped::Full),
                Err(SendFault::Ended(fault)) => Sent::Failed(tunnel_fault(fault)),
            },
        }
    }

    /// Waits until there is something to receive, if only an error.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => await_datagram(socket).await,
            Self::Tunnel(flow) => {
                flow.ready().await;
                Ok(())
            }
        }
    }

    /// Hands the next datagram to `take`. Never waits.
    pub(crate) fn receive(&self, take: impl FnOnce(&[u8])) -> Received {
        match self {
            Self::Socket(socket) => {
                let received = with_datagram_buffer(|buffer| {
                    let n = receive_now(socket, buffer)?;
                    take(&buffer[..n]);
                    Ok(())
                });
                match received {
                    Ok(()) => Received::Datagram,
                    Err(error) => of_socket(&error),
                }
            }
            Self::Tunnel(flow) => match flow.try_receive() {
                Some(Ok(datagram)) => {
                    take(&datagram);
                    Received::Datagram
                }
                Some(Err(fault)) => Received::Failed(tunnel_fault(fault)),
                None => Received::Empty,
            },
        }
    }
}

fn of_socket(error: &io::Error) -> Received {
    if error.kind() == io::ErrorKind::WouldBlock {
        Received::Empty
    } else if is_about_endpoint(error) {
        Received::Failed(fault_of(error))
    } else {
        Received::Nothing
    }
}

fn send_to_socket(socket: &UdpSocket, datagram: &[u8]) -> Sent {
    let sent = send_now(socket, datagram).or_else(|error| {
        if is_of_an_earlier_datagram(&error) {
            send_now(socket, datagram)
        } else {
            Err(error)
        }
    });
    match sent {
        Ok(_) => Sent::Yes,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Dropped(Dropped::Full),
        Err(error) if is_about_endpoint(&error) => Sent::Failed(fault_of(&error)),
        Err(_) => Sent::Dropped(Dropped::SendFailed),
    }
}

fn is_about_endpoint(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

/// The kernel tells a connected socket of an earlier datagram's fate (it was too large for the
/// path) when the next one is sent, and does not send that.
fn is_of_an_earlier_datagram(error: &io::Error) -> bool {
    !is_about_endpoint(error) && error.kind() != io::ErrorKind::WouldBlock
}

//! Where a UDP flow's datagrams go, and where its answers come from.

use std::io;

use edgemesh_plan::Way;
use edgemesh_sockets::{DatagramBatch, DatagramRun, SegmentLimit, await_datagram, send_now};
use edgemesh_tunnel::{SendFault, UdpFlow};
use tokio::net::UdpSocket;

use crate::dial::fault_of;
use crate::reasons::{DialFault, Dropped};

/// Datagrams taken out of the tunnel before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 64;

/// The flow's way to its endpoint.
#[derive(Debug)]
pub(crate) enum UdpUpstream {
    Socket(UdpSocket, SegmentLimit),
    Tunnel(Box<UdpFlow>),
}

/// What became of a datagram on its way to the endpoint.
#[derive(Debug)]
pub(crate) enum Sent {
    Yes,
    /// Lost, as datagrams may be.
    Dropped(Dropped),
    /// Lost in the tunnel, which has counted it.
    DroppedInTunnel,
    /// The endpoint is not to be reached; the datagram has not been sent.
    Failed(DialFault),
}

/// Why there is no more to receive.
#[derive(Debug)]
pub(crate) enum Received {
    /// There may be more, after others had their turn.
    Enough,
    /// No more for now.
    Empty,
    /// The endpoint is not to be reached any more.
    Failed(DialFault),
}

impl UdpUpstream {
    /// Which of the ways it is.
    pub(crate) fn way(&self) -> Way {
        match self {
            Self::Socket(..) => Way::Native,
            Self::Tunnel(_) => Way::Tunnel,
        }
    }

    /// Sends a datagram, or drops it. Never waits.
    pub(crate) fn send(&self, datagram: &[u8]) -> Sent {
        match self {
            Self::Socket(socket, _) => send_to_socket(socket, datagram),
            Self::Tunnel(flow) => match flow.send(datagram) {
                Ok(()) => Sent::Yes,
                Err(SendFault::Full) => Sent::DroppedInTunnel,
                Err(SendFault::Ended(fault)) => Sent::Failed(fault.into()),
            },
        }
    }

    /// Sends many datagrams at once, or drops them; none when they have to be sent one by one.
    /// Never waits.
    pub(crate) fn send_run(&self, run: &DatagramRun<'_>) -> Option<Sent> {
        match self {
            Self::Socket(socket, limit) => match limit.send_now(socket, run, None)? {
                Ok(()) => Some(Sent::Yes),
                Err(error) if is_of_an_earlier_datagram(&error) => None,
                Err(error) => Some(what_became(&error)),
            },
            Self::Tunnel(_) => None,
        }
    }

    /// Waits until there is something to receive, if only an error.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket, _) => await_datagram(socket).await,
            Self::Tunnel(flow) => {
                flow.ready().await;
                Ok(())
            }
        }
    }

    /// Hands what is there to `take`, as much as others can wait for. Never waits.
    pub(crate) fn receive(&self, mut take: impl FnMut(&DatagramRun<'_>)) -> Received {
        match self {
            Self::Socket(socket, _) => DatagramBatch::with(|batch| {
                let received = batch.receive(socket);
                batch.runs(|_, run| take(run));
                match received {
                    Ok(()) => Received::Enough,
                    Err(error) => of_socket(&error),
                }
            }),
            Self::Tunnel(flow) => {
                for _ in 0..DATAGRAMS_AT_ONCE {
                    match flow.try_receive() {
                        Some(Ok(datagram)) => take(&DatagramRun::of(&datagram)),
                        Some(Err(fault)) => return Received::Failed(fault.into()),
                        None => return Received::Empty,
                    }
                }
                Received::Enough
            }
        }
    }
}

fn of_socket(error: &io::Error) -> Received {
    if error.kind() == io::ErrorKind::WouldBlock {
        Received::Empty
    } else if is_about_endpoint(error) {
        Received::Failed(fault_of(error))
    } else {
        // About a single datagram, such as its size.
        Received::Enough
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
        Err(error) => what_became(&error),
    }
}

fn what_became(error: &io::Error) -> Sent {
    if error.kind() == io::ErrorKind::WouldBlock {
        Sent::Dropped(Dropped::Full)
    } else if is_about_endpoint(error) {
        Sent::Failed(fault_of(error))
    } else {
        Sent::Dropped(Dropped::SendFailed)
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

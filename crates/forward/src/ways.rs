//! The two ways to an endpoint: a socket of this node's, or a stream of the tunnel to the node
//! that has it.

use std::pin::Pin;

use edgemesh_catalog::{NodeName, ServicePortName};
use edgemesh_plan::{PortalEndpoint, Way};
use edgemesh_sockets::{
    EndpointAddr, OutwardSockets, PipePool, ResetOnDrop, SegmentLimit, has_data, join_datagrams,
};
use edgemesh_tunnel::{FirstBytes, OpenFault, Target, Tunnel, TunnelStream, UdpFlow};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::connection_end::{Broken, Side};
use crate::dial::fault_of;
use crate::metrics::{self, Counters};
use crate::portal::ActivePortal;
use crate::reasons::DialFault;
use crate::relay::{Moved, relay};
use crate::udp_upstream::UdpUpstream;

/// Leads to endpoints by the way that was planned for each.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    sockets: OutwardSockets,
    tunnel: Option<Tunnel>,
}

/// Boxed, so that those who never meet it do not make room for it.
type Opening = Pin<Box<dyn Future<Output = Result<TunnelStream, OpenFault>> + Send>>;

/// A connection with an endpoint.
#[derive(Debug)]
pub(crate) enum TcpUpstream {
    Native(TcpStream),
    Tunnel(Box<TunnelStream>),
}

impl Ways {
    pub(crate) fn new(sockets: OutwardSockets, tunnel: Option<Tunnel>) -> Self {
        Self { sockets, tunnel }
    }

    /// The runtime for connections that may go through the tunnel.
    pub(crate) fn runtime(&self) -> Handle {
        let tunnel = self.tunnel.as_ref().map(Tunnel::runtime);
        tunnel.cloned().unwrap_or_else(Handle::current)
    }

    /// Whether a connection through `portal` may have to go through the tunnel.
    pub(crate) fn may_lead_into_tunnel(&self, portal: &ActivePortal) -> bool {
        self.tunnel.is_some() && portal.has_endpoint_by(Way::Tunnel)
    }

    /// Connects with an endpoint of the service port `name` for `client`, which has said something
    /// already or may be waiting for the endpoint to begin. Its `first` bytes go along into the
    /// tunnel.
    pub(crate) fn connect_tcp(
        &self,
        name: &ServicePortName,
        endpoint: &PortalEndpoint,
        client: &TcpStream,
        first: &FirstBytes,
    ) -> impl Future<Output = Result<TcpUpstream, DialFault>> + Send + use<> {
        let sockets = self.sockets;
        let address = EndpointAddr(endpoint.address);
        let (has_data, through) = match endpoint.way {
            Way::Native => (has_data(client), None),
            Way::Tunnel => (false, Some(self.open(name, endpoint, first))),
        };
        async move {
            match through {
                None => {
                    let connected = if has_data {
                        sockets.connect_tcp_to_send(address).await
                    } else {
                        sockets.connect_tcp(address).await
                    };
                    connected
                        .map(TcpUpstream::Native)
                        .map_err(|error| fault_of(&error))
                }
                Some(opening) => {
                    let opened = opening?.await.map_err(DialFault::from)?;
                    Ok(TcpUpstream::Tunnel(Box::new(opened)))
                }
            }
        }
    }

    fn open(
        &self,
        name: &ServicePortName,
        endpoint: &PortalEndpoint,
        first: &FirstBytes,
    ) -> Result<Opening, DialFault> {
        let (tunnel, node) = self.peer_of(endpoint)?;
        let target = target(name, endpoint);
        Ok(Box::pin(tunnel.open_tcp(node, target, first.clone())))
    }

    /// A UDP flow to an endpoint of the service port `name`.
    pub(crate) fn connect_udp(
        &self,
        name: &ServicePortName,
        endpoint: &PortalEndpoint,
    ) -> Result<UdpUpstream, DialFault> {
        match endpoint.way {
            Way::Native => self
                .sockets
                .connect_udp(EndpointAddr(endpoint.address))
                .map(|socket| {
                    join_datagrams(&socket);
                    UdpUpstream::Socket(socket, SegmentLimit::default())
                })
                .map_err(|error| fault_of(&error)),
            Way::Tunnel => {
                let (tunnel, node) = self.peer_of(endpoint)?;
                let flow: UdpFlow = tunnel
                    .open_udp(node, target(name, endpoint))
                    .map_err(DialFault::from)?;
                Ok(UdpUpstream::Tunnel(Box::new(flow)))
            }
        }
    }

    /// The tunnel, and the node at its other end. A plan that wants a tunnel is only made where
    /// there is one.
    fn peer_of<'e>(
        &self,
        endpoint: &'e PortalEndpoint,
    ) -> Result<(&Tunnel, &'e NodeName), DialFault> {
        let tunnel = self.tunnel.as_ref().ok_or(DialFault::NoPeer)?;
        let node = endpoint.node.as_ref().ok_or(DialFault::NoPeer)?;
        Ok((tunnel, node))
    }
}

impl TcpUpstream {
    /// Relays until both sides have ended their stream, or one broke the connection; then
    /// the other is reset, too.
    pub(crate) async fn relay(
        self,
        client: ResetOnDrop,
        pipes: &PipePool,
        moved: &Moved,
        counters: &Counters,
    ) -> Result<(), Broken> {
        match self {
            Self::Native(stream) => {
                relay(client, ResetOnDrop::new(stream), pipes, moved, counters).await
            }
            Self::Tunnel(stream) => {
                let count = |way, bytes| {
                    let way = match way {
                        edgemesh_tunnel::Way::IntoTunnel => metrics::Way::Up,
                        edgemesh_tunnel::Way::OutOfTunnel => metrics::Way::Down,
                    };
                    moved.add(way, bytes);
                    counters.tcp_bytes(way, bytes);
                };
                // Boxed: its state is larger than that of all the rest.
                Box::pin(stream.carry(client, count))
                    .await
                    .map_err(|broken| match broken {
                        edgemesh_tunnel::Broken::Socket(error) => Broken {
                            side: Side::Client,
                            error,
                        },
                        edgemesh_tunnel::Broken::Tunnel(error) => Broken {
                            side: Side::Endpoint,
                            error,
                        },
                    })
            }
        }
    }
}

fn target(name: &ServicePortName, endpoint: &PortalEndpoint) -> Target {
    Target {
        service_port: name.clone(),
        endpoint: endpoint.address,
    }
}

//! Why the forwarder cannot start.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// The forwarder could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The mark cannot be set, without which the agent would intercept its own traffic.
    #[error(
        "cannot set the firewall mark {mark:#x} on a socket; the agent needs CAP_NET_ADMIN: run it \
         as root, or grant the capability in its pod's securityContext"
    )]
    Mark {
        /// The mark.
        mark: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A listener cannot be bound.
    #[error(
        "cannot listen on {address}/tcp for intercepted connections; see modules.edgeProxy.listenPort \
         and whether this host has addresses of that family"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No port can be reserved for portals without endpoints.
    #[error(
        "cannot reserve a port on {address} for refusing connections to services without endpoints"
    )]
    Refusal {
        /// On which intercept address.
        address: IpAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Neither family has an intercept address.
    #[error("neither an IPv4 nor an IPv6 intercept address is given; nothing could be intercepted")]
    NoFamily,
}

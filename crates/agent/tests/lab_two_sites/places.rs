//! Who may ask, and who may answer.

use std::fmt;
use std::net::SocketAddr;

use edgemesh_lab::{Namespace, Place};

/// One of the four nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum On {
    Cloud1,
    Cloud2,
    Edge1,
    Edge2,
}

impl On {
    pub(crate) const ALL: [Self; 4] = [Self::Cloud1, Self::Cloud2, Self::Edge1, Self::Edge2];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cloud1 => "cloud1",
            Self::Cloud2 => "cloud2",
            Self::Edge1 => "edge1",
            Self::Edge2 => "edge2",
        }
    }

    pub(crate) fn is_edge(self) -> bool {
        matches!(self, Self::Edge1 | Self::Edge2)
    }

    /// Its place among the four.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// What of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    Pod,
    Host,
}

/// A place for a client, or for the endpoint of the Service that is named for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At(pub(crate) On, pub(crate) Of);

impl At {
    /// The pod and the host of each node.
    pub(crate) fn all() -> impl Iterator<Item = Self> + Clone {
        On::ALL
            .into_iter()
            .flat_map(|node| [Self(node, Of::Pod), Self(node, Of::Host)])
    }

    /// The name of the Service whose only endpoint is here.
    pub(crate) fn service(self) -> String {
        format!("default/{}", self.to_string().replace(' ', "-"))
    }

    /// The IPv4 ClusterIP of that Service, with a port.
    pub(crate) fn cluster_ip(self, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 96, self.number(), 1], port))
    }

    /// The IPv6 one.
    pub(crate) fn cluster_ip_v6(self, port: u16) -> SocketAddr {
        SocketAddr::from(([0xfd00, 0x96, self.number().into(), 0, 0, 0, 0, 1], port))
    }

    /// The name that an identity server here answers with.
    pub(crate) fn server(self) -> String {
        match self.1 {
            Of::Pod => format!("server-{}", self.0.name()),
            Of::Host => self.0.name().to_owned(),
        }
    }

    fn number(self) -> u8 {
        let (node, of) = (self.0 as u8, self.1 as u8);
        10 * (node + 1) + of
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.1 {
            Of::Pod => "pod",
            Of::Host => "host",
        };
        write!(f, "{} {of}", self.0.name())
    }
}

/// A place from which is asked.
#[derive(Clone, Debug)]
pub(crate) struct Here(pub(crate) Namespace);

impl Place for Here {
    fn namespace(&self) -> &Namespace {
        &self.0
    }
}

//! What lies between sites: a router with public addresses, and nobody else.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::client::Place;
use crate::namespace::Namespace;
use crate::network::next_number;
use crate::serve::{Serve, Server};
use crate::site::SiteBuilder;
use crate::uplink::{CUTS, Plug, Uplink};

/// The internet's own address on every uplink.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Where everything goes that is for nobody in the lab (RFC 5737's first range).
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The internet of a lab: 203.0.113.0/24 (RFC 5737), IPv4 only. Sites and hosts hang on it;
/// its default route leads to a stranger, who takes every packet and answers none.
#[derive(Debug)]
pub struct Internet {
    namespace: Namespace,
    stranger: Namespace,
    addresses: AtomicUsize,
}

impl Internet {
    pub(crate) fn create() -> Result<Self> {
        let internet = Self {
            namespace: Namespace::create("internet")?,
            stranger: Namespace::create("stranger")?,
            addresses: AtomicUsize::new(0),
        };
        let namespace = &internet.namespace;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.nft(CUTS)?;
        namespace.ip(&format!(
            "link add stranger type veth peer name eth0 netns stranger\n\
             link set stranger up\n\
             address add {GATEWAY}/32 dev stranger\n\
             route add {STRANGER} dev stranger\n"
        ))?;
        internet.stranger.ip(&format!(
            "link set eth0 up\n\
             address add {STRANGER}/32 dev eth0\n\
             route add {GATEWAY} dev eth0 scope link\n"
        ))?;
        namespace.ip(&format!("route add default via {STRANGER} dev stranger\n"))?;
        Ok(internet)
    }

    /// The namespace of its router: what is seen there has passed the sites' NATs.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The place where everything arrives that is for nobody in the lab.
    #[must_use]
    pub fn stranger(&self) -> &Namespace {
        &self.stranger
    }

    /// A site to be, by default a home with private addresses behind a port-preserving NAT.
    pub fn site(&self, name: &str) -> SiteBuilder<'_> {
        SiteBuilder::new(self, name)
    }

    /// A host with a public address of its own that belongs to no cluster.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn host(&self, name: &str) -> Result<Host> {
        let namespace = Namespace::create(name)?;
        let uplink = self.plug_in(&namespace, None, None)?;
        Ok(Host { namespace, uplink })
    }

    /// A public address that nobody has yet, from 203.0.113.11 on.
    ///
    /// # Errors
    ///
    /// When there is none left.
    pub fn free_address(&self) -> Result<Ipv4Addr> {
        let taken = self.addresses.fetch_add(1, Ordering::Relaxed) + 1;
        let [a, b, c, _] = GATEWAY.octets();
        Ok(Ipv4Addr::new(
            a,
            b,
            c,
            10 + next_number(taken, "public addresses")?,
        ))
    }

    pub(crate) fn plug_in(
        &self,
        router: &Namespace,
        routed: Option<Ipv4Addr>,
        emulated: Option<u64>,
    ) -> Result<Uplink> {
        let address = self.free_address()?;
        let [.., number] = address.octets();
        Uplink::lay(Plug {
            router,
            internet: &self.namespace,
            gateway: GATEWAY,
            device: format!("uplink{number}"),
            address,
            routed,
            emulated,
        })
    }
}

/// A host on the internet that belongs to no cluster.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    uplink: Uplink,
}

impl Place for Host {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Host {
    /// Its way to the internet, with its address.
    #[must_use]
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Starts a server on it, on `port` of its public address.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn serve(&self, port: u16, kind: Serve) -> Result<Server> {
        let at = (self.uplink.public_address(), port).into();
        Server::start(&self.namespace, &[at], kind)
    }
}

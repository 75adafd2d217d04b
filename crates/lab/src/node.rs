//! A node: a namespace with an uplink, and a network for pods.

mod attachment;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use attachment::Attachment;

use crate::client::Place;
use crate::iptables::Family;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::network::{BRIDGE_HARDWARE, Network, next_number, nth_v4, nth_v6};
use crate::pod::PodBuilder;
use crate::serve::{Serve, Server};

/// How the pods of a node are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// A bridge `cni0` that holds the pods' gateway addresses.
    Bridge,
    /// As Calico does it: each pod's interface on the node (`cali…`) has no address at
    /// all (IPv6: no other than link-local), and the pod's gateway is 169.254.1.1 or the
    /// interface's link-local address. Source: Calico's documentation, "Why can't I see
    /// the 169.254.1.1 address mentioned above on my host?".
    Calico,
}

/// A node to be; [`Self::create`] makes it.
#[derive(Debug)]
#[must_use]
pub struct NodeBuilder<'lab> {
    lab: &'lab Lab,
    name: String,
    network: Option<Arc<Network>>,
    pod_network: PodNetwork,
    ipv6: bool,
    default_route: bool,
}

impl<'lab> NodeBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            network: None,
            pod_network: PodNetwork::Bridge,
            ipv6: true,
            default_route: true,
        }
    }

    /// On this segment instead of the usual one.
    pub fn on(mut self, network: &Arc<Network>) -> Self {
        self.network = Some(Arc::clone(network));
        self
    }

    /// With pods wired like this; default [`PodNetwork::Bridge`].
    pub fn with_pods_wired(mut self, pod_network: PodNetwork) -> Self {
        self.pod_network = pod_network;
        self
    }

    /// With IPv6 switched off in the kernel (`disable_ipv6`): not even `::1` is there.
    pub fn without_ipv6(mut self) -> Self {
        self.ipv6 = false;
        self
    }

    /// Without default routes, as an edge site whose uplink is gone.
    pub fn without_default_route(mut self) -> Self {
        self.default_route = false;
        self
    }

    /// Makes the node. The lab's nth node has the address 198.51.100.(10+n) on the usual
    /// segment, its pods are in 10.244.n.0/24 and `fd00:244:n::/64`. A site counts its nodes
    /// itself: the first one's address there ends in 11, whatever its pods' range.
    ///
    /// # Errors
    ///
    /// When the name is taken or the kernel refuses.
    pub fn create(self) -> Result<Node> {
        let network = match &self.network {
            Some(network) => Arc::clone(network),
            None => self.lab.usual_network()?,
        };
        let number = next_number(self.lab.next_node(), "nodes")?;
        let namespace = Namespace::create(&self.name)?;
        let node = Node {
            namespace,
            number,
            pod_network: self.pod_network,
            ipv6: self.ipv6,
            attachment: Mutex::new(Attachment::next(&network, number, self.ipv6)?),
            pods: AtomicUsize::new(0),
        };
        node.set_kernel_parameters()?;
        if self.pod_network == PodNetwork::Bridge {
            node.make_bridge()?;
        }
        node.attach()?;
        if self.default_route {
            node.add_default_routes()?;
        }
        node.await_routers()?;
        Ok(node)
    }
}

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    number: u8,
    pod_network: PodNetwork,
    ipv6: bool,
    attachment: Mutex<Attachment>,
    pods: AtomicUsize,
}

impl Place for Node {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Node {
    /// A pod on this node.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// Its name, also that of its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its present IPv4 address on its segment.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.attachment().v4
    }

    /// Its present IPv6 address on its segment, unless it is without IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.attachment().v6
    }

    /// Starts a server on the node itself, on `port` of all its addresses, present and to
    /// come: as a pod on the host's network, or a process of the host.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn serve(&self, port: u16, kind: Serve) -> Result<Server> {
        let any: IpAddr = if self.ipv6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        Server::start(&self.namespace, &[(any, port).into()], kind)
    }

    /// The IPv4 range of its pods, e.g. `10.244.1.0/24`.
    #[must_use]
    pub fn pod_range_v4(&self) -> String {
        format!("{}/24", self.pods_v4())
    }

    /// The IPv6 range of its pods, e.g. `fd00:244:1::/64`.
    #[must_use]
    pub fn pod_range_v6(&self) -> String {
        format!("{}/64", self.pods_v6())
    }

    /// The families it has addresses of.
    #[must_use]
    pub fn families(&self) -> &'static [Family] {
        if self.ipv6 {
            &Family::ALL
        } else {
            &[Family::V4]
        }
    }

    /// The gateway of its pods where they hang on a bridge: addresses of the node.
    #[must_use]
    pub fn pod_gateways(&self) -> Vec<IpAddr> {
        let v6 = self.ipv6.then(|| IpAddr::V6(self.gateway_v6()));
        [IpAddr::V4(self.gateway_v4())]
            .into_iter()
            .chain(v6)
            .collect()
    }

    /// Puts the default routes of both families in place.
    ///
    /// # Errors
    ///
    /// When they are there already.
    pub fn add_default_routes(&self) -> Result<()> {
        let network = self.attachment().network;
        let mut lines = format!("route add default via {}\n", network.router_v4());
        if self.ipv6 {
            lines += &format!("route add ::/0 via {}\n", network.router_v6());
        }
        self.namespace.ip(&lines)
    }

    /// Takes the default routes of both families away.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub fn remove_default_routes(&self) -> Result<()> {
        let mut lines = "route del default\n".to_owned();
        if self.ipv6 {
            lines += "route del ::/0\n";
        }
        self.namespace.ip(&lines)
    }

    /// Its addresses on its segment.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let Attachment { v4, v6, .. } = self.attachment();
        [IpAddr::V4(v4)]
            .into_iter()
            .chain(v6.map(IpAddr::V6))
            .collect()
    }

    pub(crate) fn pod_network(&self) -> PodNetwork {
        self.pod_network
    }

    pub(crate) fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Pods are numbered from 1 on each node.
    pub(crate) fn next_pod(&self) -> Result<u8> {
        next_number(
            self.pods.fetch_add(1, Ordering::Relaxed) + 1,
            "pods on a node",
        )
    }

    pub(crate) fn pods_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 0)
    }

    pub(crate) fn pods_v6(&self) -> Ipv6Addr {
        let range = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0);
        let number = nth_v6(range, self.number).segments()[7];
        Ipv6Addr::new(0xfd00, 0x244, number, 0, 0, 0, 0, 0)
    }

    pub(crate) fn gateway_v4(&self) -> Ipv4Addr {
        nth_v4(self.pods_v4(), 1)
    }

    pub(crate) fn gateway_v6(&self) -> Ipv6Addr {
        nth_v6(self.pods_v6(), 1)
    }

    fn set_kernel_parameters(&self) -> Result<()> {
        let namespace = &self.namespace;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        // Pods reach each other through the node although one bridge holds them: telling
        // them of a shorter way would take their traffic past the node's rules.
        namespace.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        namespace.sysctl("net.ipv4.conf.default.send_redirects", "0")?;
        if self.ipv6 {
            namespace.sysctl_if_present("net.ipv6.conf.all.forwarding", "1")
        } else {
            namespace.sysctl_if_present("net.ipv6.conf.all.disable_ipv6", "1")?;
            namespace.sysctl_if_present("net.ipv6.conf.default.disable_ipv6", "1")
        }
    }

    fn make_bridge(&self) -> Result<()> {
        let mut lines = format!(
            "link add cni0 address {BRIDGE_HARDWARE} type bridge\n\
             link set cni0 up\n\
             address add {}/24 dev cni0\n",
            self.gateway_v4()
        );
        if self.ipv6 {
            lines += &format!("address add {}/64 dev cni0 nodad\n", self.gateway_v6());
        }
        self.namespace.ip(&lines)
    }
}

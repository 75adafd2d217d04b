//! A pod: a namespace wired to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use crate::client::{Place, await_link};
use crate::namespace::Namespace;
use crate::network::{nth_v4, nth_v6};
use crate::node::{Node, PodNetwork};
use crate::serve::{Serve, Server};

/// The gateway that Calico gives its pods; no interface has it.
const CALICO_GATEWAY: &str = "169.254.1.1";
/// The hardware address of every `cali…` interface, and the IPv6 link-local address that
/// follows from it (RFC 4291, appendix A).
const CALICO_HARDWARE: &str = "ee:ee:ee:ee:ee:ee";
const CALICO_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

/// A pod to be; [`Self::create`] makes it.
#[derive(Debug)]
#[must_use]
pub struct PodBuilder<'node> {
    node: &'node Node,
    name: String,
}

impl<'node> PodBuilder<'node> {
    pub(crate) fn new(node: &'node Node, name: &str) -> Self {
        Self {
            node,
            name: name.to_owned(),
        }
    }

    /// Makes the pod. A node's nth pod has the address 10.244.NODE.(10+n), and one like it
    /// in IPv6 unless the node is without.
    ///
    /// # Errors
    ///
    /// When the name is taken (over all nodes) or the kernel refuses.
    pub fn create(self) -> Result<Pod> {
        let node = self.node;
        let number = node.next_pod()?;
        let namespace = Namespace::create(&self.name)?;
        if !node.has_ipv6() {
            namespace.sysctl_if_present("net.ipv6.conf.all.disable_ipv6", "1")?;
            namespace.sysctl_if_present("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        let pod = Pod {
            namespace,
            node_name: node.name().to_owned(),
            v4: nth_v4(node.pods_v4(), 10 + number),
            v6: node.has_ipv6().then(|| nth_v6(node.pods_v6(), 10 + number)),
        };
        match node.pod_network() {
            PodNetwork::Bridge => pod.hang_on_bridge(node, number)?,
            PodNetwork::Calico => pod.wire_like_calico(node, number)?,
        }
        for address in node.addresses() {
            await_link(&pod.namespace, address)?;
        }
        Ok(pod)
    }
}

/// A pod of the lab.
#[derive(Debug)]
pub struct Pod {
    namespace: Namespace,
    node_name: String,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

impl Place for Pod {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Pod {
    /// Its name, also that of its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// The name of the node it is on.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address, unless its node is without IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// All its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.v6.map(IpAddr::V6);
        [IpAddr::V4(self.v4)].into_iter().chain(v6).collect()
    }

    /// Starts a server in the pod, on `port` of each of its addresses.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn serve(&self, port: u16, kind: Serve) -> Result<Server> {
        let addresses = self.addresses();
        let sockets: Vec<SocketAddr> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        Server::start(&self.namespace, &sockets, kind)
    }

    /// Cuts the pod off its node, as when it was deleted: its addresses answer no more.
    ///
    /// # Errors
    ///
    /// When it was cut off before.
    pub fn unplug(&self) -> Result<()> {
        self.namespace.ip("link del eth0\n")
    }

    /// Makes it drop every TCP packet to one of its ports, as an overloaded or firewalled
    /// endpoint does: who connects hears nothing at all.
    ///
    /// # Errors
    ///
    /// Those of nft.
    pub fn drop_tcp_to(&self, port: u16) -> Result<()> {
        self.namespace.nft(&format!(
            "table inet lab-deaf {{
  chain input {{
    type filter hook input priority filter; policy accept;
    tcp dport {port} drop
  }}
}}
"
        ))
    }

    /// The pod's addresses cover no neighbour, so that pods of one node reach each other
    /// through the node and its rules also where the kernel has no `br_netfilter`. Where it
    /// has, a pod that is its own endpoint needs a port that sends back (hairpin).
    fn hang_on_bridge(&self, node: &Node, number: u8) -> Result<()> {
        let interface = format!("veth{number}");
        node.namespace().ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\n\
             link set {interface} master cni0 up\n\
             link set {interface} type bridge_slave hairpin on\n",
            self.name()
        ))?;
        self.namespace.ip(&self.own_side(
            &node.gateway_v4().to_string(),
            &node.gateway_v6().to_string(),
        ))
    }

    fn wire_like_calico(&self, node: &Node, number: u8) -> Result<()> {
        let interface = format!("cali{number}");
        let mut lines = format!(
            "link add {interface} address {CALICO_HARDWARE} type veth peer name eth0 netns {}\n\
             link set {interface} up\n\
             route add {} dev {interface} scope link\n",
            self.name(),
            self.v4
        );
        if let Some(address) = self.v6 {
            lines += &format!("route add {address} dev {interface}\n");
        }
        node.namespace().ip(&lines)?;
        node.namespace()
            .sysctl(&format!("net.ipv4.conf.{interface}.proxy_arp"), "1")?;
        self.namespace.ip(&format!(
            "{}neighbour add {CALICO_GATEWAY} lladdr {CALICO_HARDWARE} dev eth0 nud permanent\n",
            self.own_side(CALICO_GATEWAY, CALICO_GATEWAY_V6)
        ))
    }

    fn own_side(&self, gateway_v4: &str, gateway_v6: &str) -> String {
        let mut lines = format!(
            "link set eth0 up\n\
             address add {}/32 dev eth0\n\
             route add {gateway_v4} dev eth0 scope link\n\
             route add default via {gateway_v4}\n",
            self.v4
        );
        if let Some(address) = self.v6 {
            lines += &format!(
                "address add {address}/128 dev eth0 nodad\n\
                 route add {gateway_v6} dev eth0\n\
                 route add ::/0 via {gateway_v6} dev eth0\n"
            );
        }
        lines
    }
}

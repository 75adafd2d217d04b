//! A node of its own for each contender, with a pod that asks and one that answers.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use edgemesh_lab::{ClusterService, Lab, Namespace, Node, Place, Pod, Program};

use crate::load::{BULK, DATAGRAMS, LoadServer, ONCE, REQUESTS};

/// The ClusterIP of the Service that is asked.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);

/// What every namespace on a path is told, where the kernel lets it: that enough ports are to
/// be had for a few seconds of connections, that connections that have ended are forgotten
/// before there are too many, and that rules see what one bridge holds together. kubeadm asks
/// for the latter on every node, and the agent sets it when it serves such pods: all are to
/// pay for it. No ended connection is remembered (`TIME-WAIT`) either: contenders share the
/// client's ports, and the kernel takes a new connection for a part of another contender's old
/// one when the ports are the same after NAT, refuses it (`PAWSTimewait` in `nstat`), and the
/// client asks again three jiffies later.
const PARAMETERS: [(&str, &str); 5] = [
    ("net.ipv4.tcp_max_tw_buckets", "0"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.ipv4.ip_local_port_range", "10000 65535"),
    ("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "2"),
    ("net.netfilter.nf_conntrack_udp_timeout", "10"),
];

/// A node with a client and a server.
#[derive(Debug)]
pub struct OneNode {
    /// The node.
    pub node: Node,
    /// The pod that asks.
    pub client: Pod,
    /// The pod that answers.
    pub server: Pod,
    /// What answers there.
    pub load: LoadServer,
}

impl OneNode {
    /// Makes them: the node is `name`.
    ///
    /// # Errors
    ///
    /// When the name is taken or the kernel refuses.
    pub fn create(lab: &Lab, name: &str) -> Result<Self> {
        let node = lab.node(name).without_ipv6().create()?;
        let client = node.pod(&format!("{name}-client")).create()?;
        let server = node.pod(&format!("{name}-server")).create()?;
        for place in [node.namespace(), client.namespace(), server.namespace()] {
            tune(place);
        }
        let load = LoadServer::start(server.namespace())?;
        Ok(Self {
            node,
            client,
            server,
            load,
        })
    }

    /// The Service whose one endpoint is the server.
    pub fn service(&self) -> ClusterService {
        service("default/answering", CLUSTER_IP).endpoint(&self.server)
    }

    /// The server's own address.
    #[must_use]
    pub fn server_at(&self, port: u16) -> SocketAddr {
        (self.server.ipv4(), port).into()
    }

    /// Takes it down: tens of thousands of rules are not to weigh on whoever is next.
    ///
    /// # Errors
    ///
    /// Those of ip.
    pub fn clear(self) -> Result<()> {
        drop(self.load);
        for name in [self.client.name(), self.server.name(), self.node.name()] {
            Program::new("ip").args(["netns", "delete", name]).run()?;
        }
        Ok(())
    }
}

/// A Service with all ports of a [`LoadServer`], and no endpoints yet.
pub fn service(name: &str, cluster_ip: Ipv4Addr) -> ClusterService {
    ClusterService::new(name)
        .cluster_ip(&cluster_ip.to_string())
        .tcp("bulk", BULK, BULK)
        .tcp("once", ONCE, ONCE)
        .tcp("requests", REQUESTS, REQUESTS)
        .udp("datagrams", DATAGRAMS, DATAGRAMS)
}

/// Sets kernel parameters for many short connections.
pub fn tune(place: &Namespace) {
    for (key, value) in PARAMETERS {
        // A kernel without the parameter, or that keeps it to itself, has less room: failures
        // are counted and told.
        let _ = place.sysctl(key, value);
    }
}

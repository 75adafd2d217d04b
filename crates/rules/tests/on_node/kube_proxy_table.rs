//! One Service as kube-proxy programs it, in each of its modes that use NAT.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use edgemesh_lab::{Flavour, Node, Place};

/// A mode of kube-proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KubeProxyTable {
    Nftables,
    Iptables(Flavour),
}

impl KubeProxyTable {
    pub(crate) const ALL: [Self; 3] = [
        Self::Nftables,
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// Leads the Service, TCP and UDP, to port 8080 of the endpoint.
    pub(crate) fn load(self, node: &Node, service: SocketAddr, endpoint: Ipv4Addr) -> Result<()> {
        let (ip, port) = (service.ip(), service.port());
        match self {
            Self::Nftables => {
                // Names, hooks and priorities as in kube-proxy 1.36's nftables mode.
                let text = format!(
                    "table ip kube-proxy {{
                       map service-ips {{
                         type ipv4_addr . inet_proto . inet_service : verdict
                         elements = {{ {ip} . tcp . {port} : goto service-tcp,
                                       {ip} . udp . {port} : goto service-udp }}
                       }}
                       chain nat-prerouting {{
                         type nat hook prerouting priority dstnat; policy accept;
                         jump services
                       }}
                       chain nat-output {{
                         type nat hook output priority -100; policy accept;
                         jump services
                       }}
                       chain services {{
                         ip daddr . meta l4proto . th dport vmap @service-ips
                       }}
                       chain service-tcp {{
                         meta l4proto tcp dnat ip to numgen random mod 1 map {{ 0 : {endpoint} . 8080 }}
                       }}
                       chain service-udp {{
                         meta l4proto udp dnat ip to numgen random mod 1 map {{ 0 : {endpoint} . 8080 }}
                       }}
                     }}"
                );
                node.program("nft").args(["-f", "-"]).input(text).run()?;
            }
            Self::Iptables(flavour) => {
                let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n\
                                -I PREROUTING -j KUBE-SERVICES\n-I OUTPUT -j KUBE-SERVICES\n"
                    .to_owned();
                for protocol in ["tcp", "udp"] {
                    text += &format!(
                        "-A KUBE-SERVICES -d {ip}/32 -p {protocol} -m {protocol} --dport {port} \
                         -j DNAT --to-destination {endpoint}:8080\n"
                    );
                }
                flavour.restore(node, edgemesh_lab::Family::V4, &(text + "COMMIT\n"))?;
            }
        }
        Ok(())
    }

    /// Takes it out again.
    pub(crate) fn remove(self, node: &Node) -> Result<()> {
        match self {
            Self::Nftables => {
                node.program("nft")
                    .args(["delete", "table", "ip", "kube-proxy"])
                    .run()?;
            }
            Self::Iptables(flavour) => {
                for what in ["-F", "-X"] {
                    flavour.command(node, edgemesh_lab::Family::V4, ["-t", "nat", what])?;
                }
            }
        }
        Ok(())
    }
}

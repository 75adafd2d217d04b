//! The rules kube-proxy writes for a list of Services, as text for iptables-restore.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::iptables::Family;
use crate::kube_proxy::chain_names::{endpoint_chain, service_chain};
use crate::service::{ClusterService, ServicePort};

/// Renders the filter and nat tables of one family; `cluster_range` is the pods' range.
///
/// Left out of what kube-proxy writes: node ports, load balancers, external addresses,
/// session affinity and traffic policies.
#[must_use]
pub fn render(services: &[ClusterService], family: Family, cluster_range: &str) -> String {
    let mut nat = Nat::new();
    let mut refusals = String::new();
    for service in services {
        for address in addresses_of(service, family) {
            for port in &service.ports {
                let portal = Portal::new(service, port, address, family);
                if portal.endpoints.is_empty() {
                    refusals += &portal.refusal(family);
                } else {
                    nat.add(&portal, cluster_range);
                }
            }
        }
    }
    format!("{}{}", filter(&refusals), nat.finish())
}

/// One service port on one of the Service's addresses.
pub(super) struct Portal<'a> {
    pub(super) name: String,
    pub(super) port: &'a ServicePort,
    pub(super) address: IpAddr,
    pub(super) endpoints: Vec<SocketAddr>,
}

pub(super) fn addresses_of(service: &ClusterService, family: Family) -> Vec<IpAddr> {
    let parsed = service.cluster_ips.iter().filter_map(|ip| ip.parse().ok());
    parsed.filter(|ip| family_of(*ip) == family).collect()
}

fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

impl<'a> Portal<'a> {
    pub(super) fn new(
        service: &ClusterService,
        port: &'a ServicePort,
        address: IpAddr,
        family: Family,
    ) -> Self {
        let mut endpoints: Vec<SocketAddr> = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready)
            .flat_map(|endpoint| &endpoint.addresses)
            .filter(|ip| family_of(**ip) == family)
            .map(|ip| SocketAddr::new(*ip, port.target))
            .collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Self {
            name: service.port_name(port),
            port,
            address,
            endpoints,
        }
    }

    /// `-d ADDRESS -p PROTOCOL …comment… --dport PORT`, in iptables-save's own order.
    fn matches(&self, remark: &str) -> String {
        let protocol = self.port.protocol.lower();
        format!(
            "-d {}/{} -p {protocol} -m comment --comment \"{} {remark}\" -m {protocol} --dport {}",
            self.address,
            if self.address.is_ipv4() { 32 } else { 128 },
            self.name,
            self.port.port
        )
    }

    fn refusal(&self, family: Family) -> String {
        let kind = match family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        };
        let matches = self.matches("has no endpoints");
        format!("-A KUBE-SERVICES {matches} -j REJECT --reject-with {kind}\n")
    }
}

fn filter(refusals: &str) -> String {
    format!(
        "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n{refusals}\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}

/// The nat table in the making: chains are declared before all rules.
struct Nat {
    chains: String,
    rules: String,
    portals: String,
}

impl Nat {
    fn new() -> Self {
        Self {
            chains: "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
                     :KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n"
                .to_owned(),
            rules: "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
                    -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
                    -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
                    -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"
                .to_owned(),
            portals: String::new(),
        }
    }

    fn add(&mut self, portal: &Portal<'_>, cluster_range: &str) {
        let chain = service_chain(&portal.name, portal.port.protocol);
        let matches = portal.matches("cluster IP");
        let _ = writeln!(self.chains, ":{chain} - [0:0]");
        let _ = writeln!(self.portals, "-A KUBE-SERVICES {matches} -j {chain}");
        let _ = writeln!(
            self.rules,
            "-A {chain} ! -s {cluster_range} {matches} -j KUBE-MARK-MASQ"
        );
        for (place, endpoint) in portal.endpoints.iter().enumerate() {
            let target = endpoint_chain(&portal.name, portal.port.protocol, &endpoint.to_string());
            let chance = match portal.endpoints.len() - place {
                1 => String::new(),
                left => format!(
                    "-m statistic --mode random --probability {} ",
                    probability(left)
                ),
            };
            let _ = writeln!(
                self.rules,
                "-A {chain} -m comment --comment \"{} -> {endpoint}\" {chance}-j {target}",
                portal.name
            );
            self.add_endpoint(&target, portal, *endpoint);
        }
    }

    fn add_endpoint(&mut self, chain: &str, portal: &Portal<'_>, endpoint: SocketAddr) {
        let (name, protocol) = (&portal.name, portal.port.protocol.lower());
        let _ = writeln!(self.chains, ":{chain} - [0:0]");
        let _ = writeln!(
            self.rules,
            "-A {chain} -s {} -m comment --comment {name} -j KUBE-MARK-MASQ\n\
             -A {chain} -p {protocol} -m comment --comment {name} -m {protocol} -j DNAT --to-destination {endpoint}",
            endpoint.ip()
        );
    }

    fn finish(self) -> String {
        format!(
            "{}{}{}-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
            self.chains, self.rules, self.portals
        )
    }
}

/// One in `left`, with ten digits as kube-proxy's `computeProbability`.
fn probability(left: usize) -> String {
    let digits = 10_000_000_000_u64 / u64::try_from(left).unwrap_or(u64::MAX).max(1);
    format!("0.{digits:010}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Endpoint;

    fn service(endpoints: &[&str]) -> ClusterService {
        let mut service = ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080);
        for address in endpoints {
            service.endpoints.push(Endpoint {
                addresses: vec![address.parse().unwrap()],
                node: None,
                ready: true,
            });
        }
        service
    }

    #[test]
    fn each_endpoint_has_the_same_share() {
        let three = service(&["10.244.1.11", "10.244.1.12", "10.244.1.13"]);
        let text = render(&[three], Family::V4, "10.244.0.0/16");
        let shares: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(" -> 10.244.1."))
            .map(|line| line.split("--probability ").nth(1).unwrap_or("the rest"))
            .map(|tail| tail.split(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(shares, ["0.3333333333", "0.5000000000", "the"]);
    }

    #[test]
    fn a_family_without_endpoints_is_refused_and_has_no_nat_rule() {
        let v4_only = service(&["10.244.1.11"]);
        let text = render(&[v4_only], Family::V6, "fd00:244::/32");
        assert!(text.contains(
            "-A KUBE-SERVICES -d fd00:96::1/128 -p tcp -m comment --comment \"default/web:http has \
             no endpoints\" -m tcp --dport 80 -j REJECT --reject-with icmp6-port-unreachable\n"
        ));
        assert!(!text.contains("KUBE-SVC-"));
    }
}

//! The table kube-proxy writes in nftables mode for a list of Services, as text for nft.
//! Source of names, hooks and priorities: kube-proxy `pkg/proxy/nftables/proxier.go`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::iptables::Family;
use crate::kube_proxy::render::{Portal, addresses_of};
use crate::service::ClusterService;

/// Renders the table of one family; `cluster_range` is the pods' range. The text replaces
/// the rules of a table that is there already, and leaves its chains hooked in where they
/// are, as kube-proxy does when it is restarted.
///
/// Left out of what kube-proxy writes: node ports, load balancers, external addresses,
/// session affinity, traffic policies and the firewall.
#[must_use]
pub fn render_nftables(services: &[ClusterService], family: Family, cluster_range: &str) -> String {
    let (ip, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    // Nothing can be flushed that is not there; now it is.
    let mut text = hooked_in(ip, address);
    let _ = writeln!(text, "flush table {ip} kube-proxy");
    for map in ["service-ips", "no-endpoint-services"] {
        let _ = writeln!(text, "flush map {ip} kube-proxy {map}");
    }
    let _ = write!(
        text,
        "table {ip} kube-proxy {{
  chain reject-chain {{ reject; }}
  chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  chain services {{ {ip} daddr . meta l4proto . th dport vmap @service-ips; }}
  chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain filter-forward {{ ct state new jump service-endpoints-check; }}
  chain filter-output {{ ct state new jump service-endpoints-check; }}
  chain nat-prerouting {{ jump services; }}
  chain nat-output {{ jump services; }}
  chain nat-postrouting {{ jump masquerading; }}
}}
"
    );
    for service in services {
        for address in addresses_of(service, family) {
            for port in &service.ports {
                let portal = Portal::new(service, port, address, family);
                write_portal(&mut text, &portal, ip, cluster_range);
            }
        }
    }
    text
}

/// The table with what stays there as long as kube-proxy is installed.
fn hooked_in(ip: &str, address: &str) -> String {
    format!(
        "table {ip} kube-proxy {{
  map service-ips {{ type {address} . inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}
  chain reject-chain {{ }}
  chain mark-for-masquerade {{ }}
  chain masquerading {{ }}
  chain services {{ }}
  chain service-endpoints-check {{ }}
  chain filter-forward {{ type filter hook forward priority -110; }}
  chain filter-output {{ type filter hook output priority -110; }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; }}
  chain nat-output {{ type nat hook output priority -100; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; }}
}}
"
    )
}

fn write_portal(text: &mut String, portal: &Portal<'_>, ip: &str, cluster_range: &str) {
    let protocol = portal.port.protocol.lower();
    let key = format!("{} . {protocol} . {}", portal.address, portal.port.port);
    let table = format!("{ip} kube-proxy");
    if portal.endpoints.is_empty() {
        let _ = writeln!(
            text,
            "add element {table} no-endpoint-services {{ {key} comment \"{}\" : goto reject-chain }}",
            portal.name
        );
        return;
    }
    let chain = chain_of(portal);
    let endpoints: Vec<String> = portal
        .endpoints
        .iter()
        .enumerate()
        .map(|(place, endpoint)| format!("{place} : goto {}", endpoint_chain_of(portal, endpoint)))
        .collect();
    for endpoint in &portal.endpoints {
        let chain = endpoint_chain_of(portal, endpoint);
        let _ = write!(
            text,
            "add chain {table} {chain}
add rule {table} {chain} {ip} saddr {} jump mark-for-masquerade
add rule {table} {chain} meta l4proto {protocol} dnat {ip} to {endpoint}
",
            endpoint.ip()
        );
    }
    let _ = write!(
        text,
        "add chain {table} {chain}
add rule {table} {chain} {ip} daddr {} {ip} saddr != {cluster_range} jump mark-for-masquerade
add rule {table} {chain} numgen random mod {} vmap {{ {} }}
add element {table} service-ips {{ {key} comment \"{}\" : goto {chain} }}
",
        portal.address,
        endpoints.len(),
        endpoints.join(", "),
        portal.name
    );
}

/// `service-default/web/tcp/http`, without the hash that kube-proxy puts before it.
fn chain_of(portal: &Portal<'_>) -> String {
    let (service, port) = portal.name.split_once(':').unwrap_or((&portal.name, ""));
    format!("service-{service}/{}/{port}", portal.port.protocol.lower())
}

/// `endpoint-default/web/tcp/http__10.244.1.11/8080`, without the hash that kube-proxy puts
/// before it.
fn endpoint_chain_of(portal: &Portal<'_>, endpoint: &SocketAddr) -> String {
    let (service, port) = portal.name.split_once(':').unwrap_or((&portal.name, ""));
    format!(
        "endpoint-{service}/{}/{port}__{}/{}",
        portal.port.protocol.lower(),
        endpoint.ip().to_string().replace(':', "."),
        endpoint.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Endpoint;

    #[test]
    fn a_port_is_served_by_the_map_or_refused_for_want_of_endpoints() {
        let mut web = ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080);
        web.endpoints.push(Endpoint {
            addresses: vec!["10.244.1.11".parse().unwrap()],
            node: None,
            ready: true,
        });
        let v4 = render_nftables(std::slice::from_ref(&web), Family::V4, "10.244.0.0/16");
        assert!(v4.contains(
            "add element ip kube-proxy service-ips { 10.96.10.1 . tcp . 80 comment \
             \"default/web:http\" : goto service-default/web/tcp/http }\n"
        ));
        let endpoint = "endpoint-default/web/tcp/http__10.244.1.11/8080";
        assert!(v4.contains(&format!(
            "numgen random mod 1 vmap {{ 0 : goto {endpoint} }}"
        )));
        assert!(v4.contains(&format!(
            "{endpoint} ip saddr 10.244.1.11 jump mark-for-masquerade\n"
        )));
        assert!(v4.contains(&format!(
            "{endpoint} meta l4proto tcp dnat ip to 10.244.1.11:8080\n"
        )));
        let v6 = render_nftables(&[web], Family::V6, "fd00:244::/32");
        assert!(v6.contains("no-endpoint-services { fd00:96::1 . tcp . 80 comment"));
        assert!(!v6.contains("numgen"));
    }
}

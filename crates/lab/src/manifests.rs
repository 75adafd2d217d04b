//! Services of the lab as Kubernetes objects in YAML, for an agent to read.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::service::{ClusterService, Endpoint};

/// Writes `text` to `folder/name` in one step: a reader sees the old content or the new,
/// never a part.
///
/// # Errors
///
/// The file system's, with the path.
pub fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, unfinished) = (folder.join(name), folder.join(format!(".{name}.new")));
    fs::write(&unfinished, text)
        .and_then(|()| fs::rename(&unfinished, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a file for each Service, as far as it changes, and returns the files' names.
pub(crate) fn put_services(folder: &Path, services: &[ClusterService]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for service in services {
        let name = format!("{}.{}.yaml", service.namespace, service.name);
        let text = documents(service);
        if fs::read_to_string(folder.join(&name)).ok().as_ref() != Some(&text) {
            put(folder, &name, &text)?;
        }
        names.insert(name);
    }
    Ok(names)
}

/// A Service and its EndpointSlices, one per family (the API server allows no mixed
/// ones), as documents of one file.
#[must_use]
pub fn documents(service: &ClusterService) -> String {
    let mut text = service_document(service);
    for (family, is_it) in [
        ("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        ("IPv6", IpAddr::is_ipv6),
    ] {
        let endpoints: Vec<(&Endpoint, IpAddr)> = service
            .endpoints
            .iter()
            .flat_map(|endpoint| endpoint.addresses.iter().map(move |ip| (endpoint, *ip)))
            .filter(|(_, address)| is_it(address))
            .collect();
        if !endpoints.is_empty() {
            text += &slice_document(service, family, &endpoints);
        }
    }
    text
}

/// A Node with its addresses of the lab's pod network.
#[must_use]
pub fn node(node: &crate::node::Node) -> String {
    let mut ranges = vec![node.pod_range_v4()];
    let mut addresses = vec![node.ipv4().to_string()];
    if let Some(address) = node.ipv6() {
        ranges.push(node.pod_range_v6());
        addresses.push(address.to_string());
    }
    let mut text = format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {}\nspec:\n  podCIDRs:\n",
        node.name()
    );
    for range in &ranges {
        let _ = writeln!(text, "  - {range:?}");
    }
    text += "status:\n  addresses:\n";
    for address in &addresses {
        let _ = writeln!(text, "  - type: InternalIP\n    address: {address:?}");
    }
    text
}

fn service_document(service: &ClusterService) -> String {
    let (name, namespace) = (&service.name, &service.namespace);
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    );
    if !service.labels.is_empty() {
        text += "  labels:\n";
        for (key, value) in &service.labels {
            let _ = writeln!(text, "    {key}: {value:?}");
        }
    }
    text += "spec:\n  type: ClusterIP\n";
    let first = service.cluster_ips.first().map_or("None", String::as_str);
    let _ = writeln!(text, "  clusterIP: {first:?}\n  clusterIPs:");
    let all = service.cluster_ips.iter().map(String::as_str);
    for address in all.chain(service.cluster_ips.is_empty().then_some("None")) {
        let _ = writeln!(text, "  - {address:?}");
    }
    if let Some(seconds) = service.affinity_seconds {
        let _ = writeln!(
            text,
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:\n      \
             timeoutSeconds: {seconds}"
        );
    }
    if !service.ports.is_empty() {
        text += "  ports:\n";
    }
    for port in &service.ports {
        let target = match &port.target_name {
            Some(name) => name.clone(),
            None => port.target.to_string(),
        };
        let _ = writeln!(text, "  - protocol: {}", port.protocol.upper());
        if !port.name.is_empty() {
            let _ = writeln!(text, "    name: {}", port.name);
        }
        let _ = writeln!(text, "    port: {}\n    targetPort: {target}", port.port);
    }
    text
}

fn slice_document(
    service: &ClusterService,
    family: &str,
    endpoints: &[(&Endpoint, IpAddr)],
) -> String {
    let (name, namespace) = (&service.name, &service.namespace);
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: {name}-{}\n  namespace: {namespace}\n  labels:\n    \
         kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n",
        family.to_lowercase()
    );
    for port in &service.ports {
        let _ = writeln!(
            text,
            "- name: {:?}\n  protocol: {}\n  port: {}",
            port.name,
            port.protocol.upper(),
            port.target
        );
    }
    text += "endpoints:\n";
    for (endpoint, address) in endpoints {
        let address = address.to_string();
        let _ = writeln!(text, "- addresses: [{address:?}]");
        if let Some(node) = &endpoint.node {
            let _ = writeln!(text, "  nodeName: {node}");
        }
        let _ = writeln!(text, "  conditions:\n    ready: {}", endpoint.ready);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_and_its_slices_are_the_objects_a_cluster_would_have() {
        let mut service = ClusterService::new("shop/web")
            .label("service.edgemesh.kubeedge.io/service-proxy-name", "")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080)
            .by_target_name("web");
        service.endpoints.push(Endpoint {
            addresses: vec!["10.244.1.11".parse().unwrap()],
            node: Some("edge-1".to_owned()),
            ready: true,
        });
        let expected = r#"---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels:
    service.edgemesh.kubeedge.io/service-proxy-name: ""
spec:
  type: ClusterIP
  clusterIP: "10.96.10.1"
  clusterIPs:
  - "10.96.10.1"
  ports:
  - protocol: TCP
    name: http
    port: 80
    targetPort: web
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-ipv4
  namespace: shop
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
ports:
- name: "http"
  protocol: TCP
  port: 8080
endpoints:
- addresses: ["10.244.1.11"]
  nodeName: edge-1
  conditions:
    ready: true
"#;
        assert_eq!(documents(&service), expected);
    }

    #[test]
    fn a_service_without_cluster_ip_is_headless() {
        let text = documents(&ClusterService::new("default/node-exporter"));
        assert!(text.contains("clusterIP: \"None\"\n  clusterIPs:\n  - \"None\"\n"));
    }
}

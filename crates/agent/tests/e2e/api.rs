//! What the scenarios ask of the Kubernetes API.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{ClusterService, Namespace, Node, manifests};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// JSON merge patch, RFC 7396.
const MERGE: &str = "application/merge-patch+json";
/// Kubernetes' server-side apply; it creates what is not there. JSON is YAML too.
const APPLY: &str = "application/apply-patch+yaml";

/// A client of the API server. It holds no connection: every call makes its own.
#[derive(Debug, Clone)]
pub(crate) struct KubeApi {
    from: Namespace,
    kubeconfig: PathBuf,
}

impl KubeApi {
    /// A client that calls out of the network namespace `from`.
    pub(crate) fn new(from: &Namespace, kubeconfig: PathBuf) -> Self {
        Self {
            from: from.clone(),
            kubeconfig,
        }
    }

    /// Fails unless the server says that it is ready and its first namespace is there.
    pub(crate) fn ready(&self) -> Result<()> {
        self.call(Method::GET, "/readyz", "", String::new())?;
        self.call(Method::GET, "/api/v1/namespaces/default", "", String::new())?;
        Ok(())
    }

    /// Registers a node with its addresses and its IPv4 pod range.
    pub(crate) fn apply_node(&self, node: &Node) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", node.name());
        let range = node.pod_range_v4();
        let document = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.name() },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        });
        self.apply(&path, document.to_string())?;
        let v6 = node.ipv6().map(|address| address.to_string());
        let addresses: Vec<Value> = [node.ipv4().to_string()]
            .into_iter()
            .chain(v6)
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        let status = json!({ "status": { "addresses": addresses } });
        let path = format!("{path}/status");
        self.call(Method::PATCH, &path, MERGE, status.to_string())?;
        Ok(())
    }

    /// Makes a Service what it shall be, and so its endpoints: they are written as
    /// Endpoints and, where the server has them, EndpointSlices. The controllers that do
    /// this in a whole cluster do not run here.
    pub(crate) fn apply_service(&self, service: &ClusterService) -> Result<()> {
        let mut documents = manifests::documents(service);
        // The first document is the Service, all further ones are slices.
        let slices = match documents[1..].find("---\n") {
            Some(end) => documents.split_off(end + 1),
            None => String::new(),
        };
        if service.cluster_ips.len() > 1 {
            let policy = "spec:\n  ipFamilyPolicy: RequireDualStack\n";
            documents = documents.replacen("spec:\n", policy, 1);
        }
        self.apply(&service_path(service), documents)?;
        self.apply(&endpoints_path(service), endpoints(service).to_string())?;
        if self.has_endpoint_slices()? {
            self.apply_slices(service, &slices)?;
        }
        Ok(())
    }

    /// Removes a Service and its endpoints.
    pub(crate) fn delete_service(&self, service: &ClusterService) -> Result<()> {
        let mut paths = vec![endpoints_path(service)];
        if self.has_endpoint_slices()? {
            paths.extend(["ipv4", "ipv6"].map(|family| slice_path(service, family)));
        }
        // The Service last: the API server takes the Endpoints down with it.
        paths.push(service_path(service));
        for path in paths {
            self.call(Method::DELETE, &path, "", String::new())?;
        }
        Ok(())
    }

    /// Sets a label of a live Service, or removes it.
    pub(crate) fn label(
        &self,
        service: &ClusterService,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        let labels = json!({ "metadata": { "labels": { key: value } } });
        let path = service_path(service);
        self.call(Method::PATCH, &path, MERGE, labels.to_string())?;
        Ok(())
    }

    /// Whether the server speaks discovery.k8s.io/v1 (it does since 1.21).
    fn has_endpoint_slices(&self) -> Result<bool> {
        let group = self.call(Method::GET, "/apis/discovery.k8s.io/", "", String::new())?;
        let group: Value = serde_json::from_str(&group).context("the server's API groups")?;
        let versions = group["versions"].as_array().context("no versions")?;
        Ok(versions.iter().any(|version| version["version"] == "v1"))
    }

    fn apply_slices(&self, service: &ClusterService, documents: &str) -> Result<()> {
        for family in ["IPv4", "IPv6"] {
            let of_family = |document: &&str| document.contains(&format!("addressType: {family}"));
            let document = documents
                .split("---\n")
                .find(of_family)
                .map_or_else(|| empty_slice(service, family).to_string(), str::to_owned);
            self.apply(&slice_path(service, &family.to_lowercase()), document)?;
        }
        Ok(())
    }

    /// Applies a document, YAML or JSON, to an object.
    pub(crate) fn apply(&self, path: &str, document: String) -> Result<()> {
        let path = format!("{path}?fieldManager=e2e&force=true");
        self.call(Method::PATCH, &path, APPLY, document)?;
        Ok(())
    }

    /// The object, or the list, at this path.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let text = self.call(Method::GET, path, "", String::new())?;
        serde_json::from_str(&text).with_context(|| format!("GET {path}: {text}"))
    }

    /// One request on a connection of its own; returns the body of the answer.
    pub(crate) fn call(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: String,
    ) -> Result<String> {
        let said = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        let request = request.body(body.into_bytes())?;
        let exchange = async {
            tokio::time::timeout(REQUEST, self.exchange(request))
                .await
                .context("the API server did not answer in time")?
        };
        self.from
            .run(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(exchange)
            })?
            .context(said)
    }

    async fn exchange(&self, request: Request<Vec<u8>>) -> Result<String> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::try_from(config)?.request_text(request).await?)
    }
}

fn service_path(service: &ClusterService) -> String {
    let (namespace, name) = (&service.namespace, &service.name);
    format!("/api/v1/namespaces/{namespace}/services/{name}")
}

fn endpoints_path(service: &ClusterService) -> String {
    let (namespace, name) = (&service.namespace, &service.name);
    format!("/api/v1/namespaces/{namespace}/endpoints/{name}")
}

fn slice_path(service: &ClusterService, family: &str) -> String {
    let (namespace, name) = (&service.namespace, &service.name);
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}-{family}")
}

/// The v1 Endpoints of a Service: all ready, and of IPv4 only, the family of its
/// ClusterIP (the controller would write no others).
fn endpoints(service: &ClusterService) -> Value {
    let addresses: Vec<Value> = service
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint.addresses.iter().map(|ip| (ip, &endpoint.node)))
        .filter(|(address, _)| IpAddr::is_ipv4(address))
        .map(|(address, node)| json!({ "ip": address.to_string(), "nodeName": node }))
        .collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            json!({ "name": port.name, "protocol": port.protocol.upper(), "port": port.target })
        })
        .collect();
    let subsets = if addresses.is_empty() {
        json!([])
    } else {
        json!([{ "addresses": addresses, "ports": ports }])
    };
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": { "name": service.name },
        "subsets": subsets,
    })
}

/// What is left of a slice whose endpoints are all gone.
fn empty_slice(service: &ClusterService, family: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-{}", service.name, family.to_lowercase()),
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": family,
        "endpoints": [],
        "ports": [],
    })
}

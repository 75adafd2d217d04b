//! Tens of thousands of objects for a real API server, many at a time.

use std::path::PathBuf;

use anyhow::{Context, Result};
use edgemesh_lab::{ClusterService, Namespace};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, StatusCode};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

/// Requests that are under way at the same time.
const AT_ONCE: usize = 32;

/// A way to the API server from one namespace.
#[derive(Debug)]
pub(crate) struct BulkObjects {
    from: Namespace,
    kubeconfig: PathBuf,
    /// Whether the server has discovery.k8s.io/v1; kube-proxy then reads slices alone.
    slices: bool,
}

impl BulkObjects {
    pub(crate) fn new(from: &Namespace, kubeconfig: PathBuf, slices: bool) -> Self {
        Self {
            from: from.clone(),
            kubeconfig,
            slices,
        }
    }

    /// Creates Services with their endpoints.
    pub(crate) fn create(&self, services: impl Iterator<Item = ClusterService>) -> Result<()> {
        self.send(services.flat_map(|service| {
            [
                self.endpoints_request(&service),
                create("/api/v1/namespaces/default/services", &object(&service)),
            ]
        }))
    }

    /// Creates the endpoints of Services that are not there yet.
    pub(crate) fn create_endpoints(&self, services: &[ClusterService]) -> Result<()> {
        self.send(
            services
                .iter()
                .map(|service| self.endpoints_request(service)),
        )
    }

    /// Creates one Service whose endpoints are there.
    pub(crate) fn create_service(&self, service: &ClusterService) -> Result<()> {
        let path = "/api/v1/namespaces/default/services";
        self.send(std::iter::once(create(path, &object(service))))
    }

    /// Removes Services, but not their endpoints.
    pub(crate) fn delete_services(&self, services: &[ClusterService]) -> Result<()> {
        self.send(services.iter().map(|service| {
            let path = format!("/api/v1/namespaces/default/services/{}", service.name);
            (Method::DELETE, path, String::new())
        }))
    }

    fn endpoints_request(&self, service: &ClusterService) -> (Method, String, String) {
        if self.slices {
            create(
                "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
                &slice(service),
            )
        } else {
            create("/api/v1/namespaces/default/endpoints", &endpoints(service))
        }
    }

    fn send(&self, requests: impl Iterator<Item = (Method, String, String)>) -> Result<()> {
        let requests: Vec<_> = requests.collect();
        let all = async {
            let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            let client = Client::try_from(config)?;
            stream::iter(requests)
                .map(|request| call(&client, request))
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await
        };
        self.from.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(all)
        })?
    }
}

async fn call(client: &Client, (method, path, body): (Method, String, String)) -> Result<()> {
    let said = format!("{method} {path}");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body.into_bytes())?;
    match client.request_text(request).await {
        Ok(_) => Ok(()),
        // What an earlier number of Services needed stays.
        Err(kube::Error::Api(status)) if status.code == StatusCode::CONFLICT.as_u16() => Ok(()),
        Err(error) => Err(error).context(said),
    }
}

fn create(path: &str, object: &Value) -> (Method, String, String) {
    (Method::POST, path.to_owned(), object.to_string())
}

fn object(service: &ClusterService) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            json!({ "name": port.name, "protocol": port.protocol.upper(),
                    "port": port.port, "targetPort": port.target })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": service.name },
        "spec": { "clusterIP": service.cluster_ips.first(), "ports": ports },
    })
}

fn endpoints(service: &ClusterService) -> Value {
    let addresses: Vec<Value> = service
        .endpoints
        .iter()
        .map(|endpoint| json!({ "ip": endpoint.addresses.first(), "nodeName": endpoint.node }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": { "name": service.name },
        "subsets": [{ "addresses": addresses, "ports": target_ports(service) }],
    })
}

fn slice(service: &ClusterService) -> Value {
    let endpoints: Vec<Value> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({ "addresses": endpoint.addresses, "nodeName": endpoint.node,
                    "conditions": { "ready": endpoint.ready } })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-1", service.name),
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": target_ports(service),
    })
}

fn target_ports(service: &ClusterService) -> Vec<Value> {
    service
        .ports
        .iter()
        .map(|port| {
            json!({ "name": port.name, "protocol": port.protocol.upper(), "port": port.target })
        })
        .collect()
}

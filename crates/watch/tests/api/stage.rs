//! An API source at work, and small clusters for it to read.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::{Catalog, MeshNode, NodeName, ObjectName, PublicKey};
use edgemesh_watch::{
    ApiSettings, ApiSource, ApiTiming, ApiWay, Counters, LastGood, Origin, SourceState,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::fake_api_server::{FakeApiServer, NODES, SERVICES, SLICES};

/// An API source at work. It stops when dropped.
pub(crate) struct Watching {
    pub(crate) states: watch::Receiver<SourceState>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinSet<()>,
}

impl Watching {
    pub(crate) fn server(server: &FakeApiServer) -> Self {
        Self::with(server, None, quick())
    }

    pub(crate) fn with(
        server: &FakeApiServer,
        last_good: Option<LastGood>,
        timing: ApiTiming,
    ) -> Self {
        let way = ApiWay::Master {
            url: server.url(),
            kubeconfig: None,
        };
        Self::by(way, last_good, timing)
    }

    pub(crate) fn by(way: ApiWay, last_good: Option<LastGood>, timing: ApiTiming) -> Self {
        let settings = settings(way);
        let counters = Arc::new(Counters::default());
        let (source, states) = ApiSource::new(settings, timing, last_good, counters.clone());
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(source.run(shutdown.clone()));
        Self {
            states,
            counters,
            shutdown,
            task,
        }
    }

    /// Waits for a state.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&SourceState) -> bool) -> SourceState {
        let seen = timeout(Duration::from_secs(30), self.states.wait_for(wanted))
            .await
            .map(|state| state.unwrap().clone());
        seen.unwrap_or_else(|_| panic!("not within 30 s; last: {:#?}", *self.states.borrow()))
    }

    /// Waits until so many requests have failed.
    pub(crate) async fn until_errors(&self, count: u64) {
        let failing = async {
            while self.counters.watch_errors() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), failing)
            .await
            .expect("failures within 30 s");
    }

    pub(crate) async fn until_complete(&mut self) -> Catalog {
        self.until(|state| state.complete && state.origin == Origin::Api)
            .await
            .catalog
    }

    pub(crate) async fn until_services(&mut self, names: &[&str]) -> Catalog {
        self.until(|state| state.origin == Origin::Api && services(&state.catalog) == names)
            .await
            .catalog
    }
}

pub(crate) fn settings_for(server: &FakeApiServer) -> ApiSettings {
    settings(ApiWay::Master {
        url: server.url(),
        kubeconfig: None,
    })
}

fn settings(way: ApiWay) -> ApiSettings {
    ApiSettings {
        way,
        qps: 0.0,
        burst: 1,
        socket_mark: Some(0x2000),
        user_agent: "edgemesh-test/1".to_owned(),
    }
}

pub(crate) fn quick() -> ApiTiming {
    ApiTiming {
        coalesce: Duration::from_millis(1),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        look_for_mesh_nodes_min: Duration::from_millis(5),
        look_for_mesh_nodes_max: Duration::from_millis(20),
        ..ApiTiming::default()
    }
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "managedFields": [{"manager": "me"}]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
    })
}

pub(crate) fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "metadata": {
            "namespace": "default", "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    })
}

pub(crate) fn endpoints(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": "default", "name": name},
        "subsets": [{"addresses": addresses, "ports": [{"name": "http", "port": 8080}]}],
    })
}

pub(crate) fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"images": [{"names": ["huge"]}]},
    })
}

/// What the agent of a node says of itself, as of its start number `boot`.
pub(crate) fn mesh_node(name: &str, boot: u8) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "publicKey": PublicKey::from_bytes([7; 32]).to_string(),
            "addresses": ["203.0.113.7:20006"],
            "bootID": boot.to_string(),
            "renewTime": "2026-01-02T03:04:05.000000Z",
        },
    })
}

/// The same as the agent of that node knows it.
pub(crate) fn own(name: &str, boot: u8) -> MeshNode {
    MeshNode {
        name: NodeName::new(name),
        uid: None,
        public_key: PublicKey::from_bytes([7; 32]),
        name_signature: None,
        addresses: vec!["203.0.113.7:20006".parse().unwrap()],
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "1".into(),
        boot_id: boot.to_string().into(),
        previous_key: None,
    }
}

/// A server with one Service, its slice and a node.
pub(crate) async fn small_cluster() -> FakeApiServer {
    let server = FakeApiServer::start().await;
    server.put(SERVICES, service("web"));
    server.put(SLICES, slice("web-1", "web", &["10.244.1.2"]));
    server.put(NODES, node("edge-1"));
    server
}

pub(crate) fn services(catalog: &Catalog) -> Vec<String> {
    catalog
        .services()
        .map(|service| service.name.name().to_owned())
        .collect()
}

/// Name and boot id of each MeshNode.
pub(crate) fn mesh_nodes(catalog: &Catalog) -> Vec<String> {
    catalog
        .mesh_nodes()
        .map(|node| format!("{} {}", node.name, node.boot_id))
        .collect()
}

pub(crate) fn addresses(catalog: &Catalog, service: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = catalog
        .slices_of(&ObjectName::new("default", service))
        .flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address))
        .collect();
    addresses.sort();
    addresses
}

pub(crate) fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

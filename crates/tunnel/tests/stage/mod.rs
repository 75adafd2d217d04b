//! Several nodes' tunnels in one process, their endpoints on the lab's loopback device.
#![allow(dead_code, reason = "each lab uses another part of it")]

pub(crate) mod tcp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use edgemesh_catalog::{
    Catalog, Change, Endpoint, EndpointPort, EndpointSlice, EndpointState, Fold, MeshNode, Node,
    NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, ServicePortName,
    TrafficPolicy,
};
use edgemesh_lab::Program;
use edgemesh_plan::{Exits, Policy};
use edgemesh_tunnel::{FirstBytes, NodeKey, OpenFault, Running, Settings, Target, Tunnel};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing_subscriber::EnvFilter;

/// How long anything may take before a test is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Port 8080 of the endpoint `10.1.0.n`.
pub(crate) fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 8080))
}

/// The service port `default/NAME`.
pub(crate) fn service_port(name: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("default", name),
        port: "".into(),
        protocol,
    }
}

/// What is asked for: `endpoint` as one of `default/NAME`.
pub(crate) fn target(name: &str, protocol: Protocol, endpoint: SocketAddr) -> Target {
    Target {
        service_port: service_port(name, protocol),
        endpoint,
    }
}

/// Runs `body` with a cluster that has no nodes yet.
pub(crate) fn run(body: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    // Silent unless RUST_LOG asks for more.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut cluster = Cluster::new()?;
        timeout(Duration::from_secs(100), body(&mut cluster))
            .await
            .context("the test takes too long")?
    })
}

/// Nodes that share one catalog.
pub(crate) struct Cluster {
    fold: Fold,
    state: TempDir,
    views: BTreeMap<NodeName, watch::Sender<Arc<Exits>>>,
    started: u8,
}

/// One node's tunnel.
pub(crate) struct Member {
    pub(crate) name: NodeName,
    pub(crate) tunnel: Tunnel,
    pub(crate) running: Running,
    pub(crate) mesh_node: MeshNode,
}

impl Cluster {
    fn new() -> Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Program::new("ip")
            .args(["route", "add", "local", "10.1.0.0/16", "dev", "lo"])
            .run()?;
        Ok(Self {
            fold: Fold::default(),
            state: TempDir::new()?,
            views: BTreeMap::new(),
            started: 0,
        })
    }

    /// Starts the tunnel of node `name` and makes it known.
    pub(crate) async fn join(&mut self, name: &str) -> Result<Member> {
        self.join_with(name, |_| {}).await
    }

    /// As [`Cluster::join`], with other settings.
    pub(crate) async fn join_with(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Member> {
        let member = self.start(name, change).await?;
        self.introduce(&member);
        Ok(member)
    }

    /// Tells all nodes of who was started without that.
    pub(crate) fn introduce(&mut self, member: &Member) {
        self.apply(Change::Node(Node {
            name: member.name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: Default::default(),
        }));
        self.apply(Change::MeshNode(member.mesh_node.clone()));
    }

    /// Starts a tunnel that calls itself `name`, which nobody is told of. The same name has
    /// the same key each time.
    pub(crate) async fn start(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Member> {
        self.start_with_key(name, name, change).await
    }

    /// As [`Cluster::start`], with the key of whoever keeps it below `key`.
    pub(crate) async fn start_with_key(
        &mut self,
        name: &str,
        key: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Member> {
        self.started += 1;
        let key = NodeKey::load_or_create(&self.state.path().join(key))?;
        let name = NodeName::new(name);
        let mut settings = Settings::of(name.clone());
        settings.bind = vec![[10, 1, 200, self.started].into()];
        settings.listen_port = 0;
        change(&mut settings);
        let view = watch::Sender::new(self.view_of(&name));
        let seen = view.subscribe();
        let public_key = key.public();
        let name_signature = Some(Box::new(key.sign_name(&name)));
        let (tunnel, running) = Tunnel::start(settings, key, seen).await?;
        self.views.insert(name.clone(), view);
        let mesh_node = MeshNode {
            name: name.clone(),
            uid: None,
            public_key,
            name_signature,
            addresses: tunnel.listening_at(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "test".into(),
            boot_id: tunnel.boot_id().into(),
            previous_key: None,
        };
        Ok(Member {
            name,
            tunnel,
            running,
            mesh_node,
        })
    }

    /// Tells all nodes of a change.
    pub(crate) fn apply(&mut self, change: Change) {
        self.fold.apply(change);
        for (name, view) in &self.views {
            view.send_replace(self.view_of(name));
        }
    }

    /// Adds the Service `default/NAME` with these endpoints, each on the node beside it.
    pub(crate) fn service(
        &mut self,
        name: &str,
        protocol: Protocol,
        endpoints: &[(SocketAddr, &Member)],
    ) {
        self.service_with_label(name, protocol, endpoints, false);
    }

    /// As [`Cluster::service`]; `label` says whether it carries the filter label.
    pub(crate) fn service_with_label(
        &mut self,
        name: &str,
        protocol: Protocol,
        endpoints: &[(SocketAddr, &Member)],
        label: bool,
    ) {
        let service = ObjectName::new("default", name);
        self.apply(Change::Service(service_of(&service, protocol, label)));
        self.apply(Change::Slice(slice_of(&service, protocol, endpoints)));
    }

    fn view_of(&self, node: &NodeName) -> Arc<Exits> {
        let policy = Policy::of(node.clone());
        Arc::new(Exits::new(self.catalog(), policy))
    }

    pub(crate) fn catalog(&self) -> Catalog {
        self.fold.catalog()
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn service_of(name: &ObjectName, protocol: Protocol, filter_label: bool) -> Service {
    Service {
        name: name.clone(),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![[10, 96, 0, 1].into()],
        headless: false,
        ports: vec![ServicePort {
            name: "".into(),
            protocol,
            port: 80,
        }],
        filter_label,
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
    }
}

fn slice_of(
    service: &ObjectName,
    protocol: Protocol,
    endpoints: &[(SocketAddr, &Member)],
) -> EndpointSlice {
    EndpointSlice {
        name: service.clone(),
        service: service.name().into(),
        ports: vec![EndpointPort {
            name: "".into(),
            protocol,
            port: 8080,
        }],
        endpoints: endpoints
            .iter()
            .map(|(address, member)| Endpoint {
                address: address.ip(),
                node: Some(member.name.clone()),
                state: EndpointState::Ready,
                hints: None,
            })
            .collect(),
    }
}

impl Member {
    /// Waits until this node believes `other`.
    pub(crate) async fn knows(&self, other: &Member) -> Result<()> {
        let mut reachability = self.tunnel.reachability();
        let known = reachability.wait_for(|r| r.peers().any(|peer| *peer == other.name));
        timeout(PATIENCE, known).await??;
        Ok(())
    }

    /// Makes a connection with `other`, which is asked for what it does not have.
    pub(crate) async fn reaches(&self, other: &Member) -> Result<()> {
        let nothing = target("nothing", Protocol::Tcp, endpoint(1));
        let opened = self
            .tunnel
            .open_tcp(&other.name, nothing, FirstBytes::default())
            .await;
        match opened {
            Err(OpenFault::NotAnEndpoint) => Ok(()),
            other => bail!("asked for what is no endpoint: {other:?}"),
        }
    }

    /// The address that its tunnel has, as text.
    pub(crate) fn address(&self) -> String {
        self.mesh_node.addresses[0].ip().to_string()
    }
}

//! A node in a lab: portals by real DNAT rules, endpoints and clients on its loopback device,
//! and a forwarder in this process.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_catalog::{
    Change, Endpoint, EndpointPort, EndpointSlice, EndpointState, Fold, NodeName, ObjectName,
    Protocol, Service, ServiceKind, ServicePort, TrafficPolicy,
};
use edgemesh_forward::{Counters, Destinations, Forwarder, Settings};
use edgemesh_lab::{Program, await_until};
use edgemesh_plan::{DatapathMode, Plan, Policy, Reachability, plan};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(crate) const INTERCEPT_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 16);
pub(crate) const INTERCEPT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xed6e, 0x6d65, 0x7368, 0, 0, 0, 1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const MARK: u32 = 0x2000;
/// The node of the forwarder.
pub(crate) const OWN_NODE: &str = "edge-1";

/// The ClusterIP `10.96.0.n`.
pub(crate) fn cluster_ip(n: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, n])
}

/// The ClusterIP `fd00:96::n`.
pub(crate) fn cluster_ip_v6(n: u16) -> IpAddr {
    IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, n])
}

/// Port 8080 of the endpoint `10.1.0.n`.
pub(crate) fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 8080))
}

/// Port 8080 of the endpoint `fd00:1::n`.
pub(crate) fn endpoint_v6(n: u16) -> SocketAddr {
    SocketAddr::from(([0xfd00, 1, 0, 0, 0, 0, 0, n], 8080))
}

/// A client's address `10.1.9.n`.
pub(crate) fn client(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 9, n], 0))
}

/// Settings of the forwarder on this node.
pub(crate) fn settings() -> Settings {
    Settings {
        intercept_v4: Some(INTERCEPT_V4),
        intercept_v6: Some(INTERCEPT_V6),
        mark: Some(MARK),
        ..Settings::default()
    }
}

/// The policy of any node: no kernel takes a part of what the forwarder is tested with.
pub(crate) fn policy_of(node: NodeName) -> Policy {
    Policy {
        datapath: DatapathMode::User,
        ..Policy::of(node)
    }
}

/// Runs `body` on a stage whose forwarder has `settings`.
pub(crate) fn run(
    settings: &Settings,
    body: impl AsyncFnOnce(&mut Stage) -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stage = Stage::new(settings)?;
        body(&mut stage).await
    })
}

/// A node with its forwarder.
pub(crate) struct Stage {
    pub(crate) forwarder: Forwarder,
    pub(crate) fold: Fold,
    /// Where endpoints are that are not on this node.
    pub(crate) elsewhere: BTreeMap<SocketAddr, NodeName>,
    /// Nobody is reached through a tunnel unless a test says so.
    pub(crate) reachability: Reachability,
    /// Only a test of the listener itself does without the rule that protects it.
    pub(crate) protect_listener: bool,
}

impl Stage {
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Program::new("ip")
            .args(["-batch", "-"])
            .input(format!(
                "address add {INTERCEPT_V4}/32 dev lo scope host\n\
                 address add {INTERCEPT_V6}/128 dev lo nodad\n\
                 address add fd00:1::9/128 dev lo nodad\n\
                 route add local 10.1.0.0/16 dev lo\n\
                 address add fd00:1::1/128 dev lo nodad\n\
                 route add 10.96.0.0/16 dev lo src 10.1.9.1\n\
                 route add fd00:96::/64 dev lo src fd00:1::9\n"
            ))
            .run()?;
        for tool in ["iptables", "ip6tables"] {
            Program::new(format!("{tool}-nft-restore"))
                .input("*nat\n:PORTALS - [0:0]\n-A OUTPUT -j PORTALS\nCOMMIT\n")
                .run()?;
        }
        let mut forwarder = Forwarder::bind(settings)?;
        forwarder.start();
        Ok(Self {
            forwarder,
            fold: Fold::default(),
            elsewhere: BTreeMap::new(),
            reachability: Reachability::default(),
            protect_listener: true,
        })
    }

    /// Adds or changes the service `default/NAME`, whose port 80 leads to `endpoints`.
    pub(crate) fn service(
        &mut self,
        name: &str,
        ip: IpAddr,
        protocol: Protocol,
        endpoints: &[SocketAddr],
    ) -> Result<Destinations> {
        self.service_with_affinity(name, ip, protocol, endpoints, None)
    }

    /// As [`Self::service`]; clients keep their endpoint for `affinity`.
    pub(crate) fn service_with_affinity(
        &mut self,
        name: &str,
        ip: IpAddr,
        protocol: Protocol,
        endpoints: &[SocketAddr],
        affinity: Option<Duration>,
    ) -> Result<Destinations> {
        let object = ObjectName::new("default", name);
        self.fold.apply(Change::Service(Service {
            name: object.clone(),
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec![ip],
            headless: false,
            filter_label: false,
            session_affinity: affinity,
            internal_traffic_policy: TrafficPolicy::Cluster,
            ports: vec![ServicePort {
                name: "".into(),
                protocol,
                port: 80,
            }],
        }));
        self.fold.apply(Change::Slice(EndpointSlice {
            name: object,
            service: name.into(),
            ports: vec![EndpointPort {
                name: "".into(),
                protocol,
                port: 8080,
            }],
            endpoints: endpoints
                .iter()
                .map(|address| Endpoint {
                    address: address.ip(),
                    node: Some(self.node_of(address)),
                    state: EndpointState::Ready,
                    hints: None,
                })
                .collect(),
        }));
        self.sync()
    }

    /// Takes the service `default/NAME` away.
    pub(crate) fn remove(&mut self, name: &str) -> Result<Destinations> {
        let object = ObjectName::new("default", name);
        self.fold.apply(Change::ServiceGone(object.clone()));
        self.fold.apply(Change::SliceGone(object));
        self.sync()
    }

    /// Plan, forwarder, rules, forwarder: as an agent does it.
    fn sync(&mut self) -> Result<Destinations> {
        let plan = self.plan();
        let destinations = self.forwarder.prepare(&plan);
        self.write_rules(&destinations)?;
        self.forwarder.retire();
        Ok(destinations)
    }

    fn node_of(&self, endpoint: &SocketAddr) -> NodeName {
        let elsewhere = self.elsewhere.get(endpoint).cloned();
        elsewhere.unwrap_or_else(|| NodeName::new(OWN_NODE))
    }

    fn plan(&self) -> Plan {
        let policy = policy_of(NodeName::new(OWN_NODE));
        plan(&self.fold.catalog(), &self.reachability, &policy)
    }

    fn write_rules(&self, destinations: &Destinations) -> Result<()> {
        for (tool, intercept) in [
            ("iptables", IpAddr::V4(INTERCEPT_V4)),
            ("ip6tables", IpAddr::V6(INTERCEPT_V6)),
        ] {
            let mut rules = format!(
                "*nat\n:PORTALS - [0:0]\n-A PORTALS -m mark --mark {MARK:#x}/{MARK:#x} -j RETURN\n"
            );
            let refusal = self
                .forwarder
                .refusal_addrs()
                .find(|address| address.ip() == intercept)
                .context("a refusal port per family")?;
            if self.protect_listener {
                for protocol in ["tcp", "udp"] {
                    rules += &format!(
                        "-A PORTALS -d {intercept} -p {protocol} -j DNAT --to-destination {refusal}\n"
                    );
                }
            }
            for (frontend, port) in &destinations.ports {
                if frontend.ip.is_ipv4() == intercept.is_ipv4() {
                    rules += &format!(
                        "-A PORTALS -d {} -p {} --dport {} -j DNAT --to-destination {}\n",
                        frontend.ip,
                        frontend.protocol,
                        frontend.port,
                        SocketAddr::new(intercept, *port)
                    );
                }
            }
            Program::new(format!("{tool}-nft-restore"))
                .arg("--noflush")
                .input(rules + "COMMIT\n")
                .run()?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> std::sync::Arc<Counters> {
        self.forwarder.counters()
    }
}

/// Waits until `condition` holds, without keeping a worker from its work.
pub(crate) async fn eventually(
    what: &str,
    condition: impl FnMut() -> bool + Send,
) -> Result<Duration> {
    tokio::task::block_in_place(|| await_until(PATIENCE, what, condition))
}

/// Open file descriptors of this process.
pub(crate) fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

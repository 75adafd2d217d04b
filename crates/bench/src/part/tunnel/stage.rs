//! Sites with agents, and the ways from the first edge node.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use edgemesh_lab::{ClusterService, Lab, LinkConditions, Namespace, Node, Place, Pod, Sites};

use super::agents::{Agents, CARRIER, await_way};
use crate::contender::wireguard::WireGuard;
use crate::load::{Counted, LoadServer};
use crate::part::{Effort, Found, in_one_line};
use crate::processes::Processes;
use crate::stage::{service, tune};

/// ClusterIPs of the Services whose endpoints are on each node.
const ON_CLOUD1: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
const ON_CLOUD2: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 2);
const ON_EDGE2: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 3);
/// See the module.
pub(super) struct TunnelStage {
    sites: Sites,
    ways: Vec<Way>,
    _agents: Agents,
    _wireguard: Option<WireGuard>,
    _servers: Vec<(LoadServer, Option<Pod>)>,
}

/// A way from the first edge node to a server.
pub(super) struct Way {
    pub(super) name: String,
    address: Ipv4Addr,
    pub(super) counted: Arc<Counted>,
    pub(super) processes: Processes,
}

impl Way {
    /// Where clients connect to.
    pub(super) fn to(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }
}

/// A pod that serves, on a node of its own.
struct Served {
    address: Ipv4Addr,
    pod: Pod,
    load: LoadServer,
}

impl Served {
    fn on(node: &Node, address: Ipv4Addr) -> Result<Self> {
        let pod = node.pod(&format!("server-{}", node.name())).create()?;
        let load = LoadServer::start(pod.namespace())?;
        Ok(Self { address, pod, load })
    }

    fn service(&self) -> ClusterService {
        service(&format!("default/{}", self.pod.name()), self.address).endpoint(&self.pod)
    }
}

impl TunnelStage {
    /// Starts everything. `between_edges` is how agents are to reach each other there, as
    /// their status tells.
    pub(super) fn start(
        lab: &Lab,
        sites: Sites,
        effort: &Effort,
        between_edges: &str,
        found: &mut Found,
    ) -> Result<Self> {
        for node in sites.nodes() {
            tune(node.namespace());
        }
        let host = LoadServer::start(sites.cloud1.namespace())?;
        let served = [
            Served::on(&sites.cloud1, ON_CLOUD1)?,
            Served::on(&sites.cloud2, ON_CLOUD2)?,
            Served::on(&sites.edge2, ON_EDGE2)?,
        ];
        let services = served.each_ref().map(Served::service);
        let agents = Agents::start(lab, &sites, effort, &services)?;
        let mut ways = vec![Way {
            name: "plain TCP through the NAT".to_owned(),
            address: sites.cloud1.ipv4(),
            counted: host.shared(),
            processes: Processes::default(),
        }];
        let wireguard = start_wireguard(lab, &sites, effort, found);
        ways.extend(wireguard.as_ref().map(|wireguard| Way {
            name: "wireguard-go to the cloud".to_owned(),
            address: wireguard.address(),
            counted: host.shared(),
            processes: wireguard.processes(),
        }));
        for wanted in wanted(&sites, &agents, &served, between_edges, found) {
            ways.extend(wanted.way(&sites, &agents, effort, found));
        }
        let servers = served.map(|served| (served.load, Some(served.pod)));
        Ok(Self {
            sites,
            ways,
            _agents: agents,
            _wireguard: wireguard,
            _servers: servers.into_iter().chain([(host, None)]).collect(),
        })
    }

    /// Where clients are: the first edge node itself.
    pub(super) fn client(&self) -> &Namespace {
        self.sites.edge1.namespace()
    }

    /// All ways, plain TCP first.
    pub(super) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// Puts both edges' uplinks under these conditions.
    pub(super) fn set_conditions(&self, conditions: LinkConditions) -> Result<()> {
        for site in [self.sites.edge1_site(), self.sites.edge2_site()] {
            site.uplink().set_conditions_both_ways(conditions)?;
        }
        Ok(())
    }
}

/// A way through agents, and how packets are to go on it.
struct Wanted<'w> {
    name: String,
    served: &'w Served,
    node: &'w Node,
    expected: &'w str,
    on_path: Vec<u32>,
}

fn wanted<'w>(
    sites: &'w Sites,
    agents: &Agents,
    [on_cloud1, on_cloud2, on_edge2]: &'w [Served; 3],
    between_edges: &'w str,
    found: &mut Found,
) -> Vec<Wanted<'w>> {
    let pids = agents.pids;
    let mut wanted = vec![Wanted {
        name: "agent, to the cloud".to_owned(),
        served: on_cloud1,
        node: &sites.cloud1,
        expected: "direct",
        on_path: vec![pids.edge1, pids.cloud1],
    }];
    if agents.have_carrier {
        wanted.push(Wanted {
            name: "agent, to the cloud, TCP carrier".to_owned(),
            served: on_cloud2,
            node: &sites.cloud2,
            expected: "direct",
            on_path: vec![pids.edge1, pids.cloud2],
        });
    } else {
        found.remark(format!(
            "the TCP carrier is left out: this agent has no key {CARRIER}"
        ));
    }
    wanted.push(Wanted {
        name: format!("agent, edge to edge, {between_edges}"),
        served: on_edge2,
        node: &sites.edge2,
        expected: between_edges,
        // The relay's is the first cloud node's.
        on_path: vec![pids.edge1, pids.edge2, pids.cloud1],
    });
    wanted
}

impl Wanted<'_> {
    /// Waits until it is there; a remark where it does not come.
    fn way(
        self,
        sites: &Sites,
        agents: &Agents,
        effort: &Effort,
        found: &mut Found,
    ) -> Option<Way> {
        if !effort.takes(&self.name) {
            return None;
        }
        let (client, to) = (sites.edge1.namespace(), self.served.address);
        if let Err(error) = await_way(&agents.edge1, client, to, (self.node, self.expected)) {
            let name = &self.name;
            found.remark(format!("{name} is left out: {}", in_one_line(&error)));
            return None;
        }
        Some(Way {
            name: self.name,
            address: self.served.address,
            counted: self.served.load.shared(),
            processes: Processes::of(&self.on_path),
        })
    }
}

fn start_wireguard(
    lab: &Lab,
    sites: &Sites,
    effort: &Effort,
    found: &mut Found,
) -> Option<WireGuard> {
    if !effort.takes("wireguard-go") {
        return None;
    }
    if let Some(packages) = WireGuard::missing() {
        found.remark(format!(
            "wireguard-go is left out: apt-get install --no-install-recommends {packages}"
        ));
        return None;
    }
    match WireGuard::start(lab, &sites.cloud1, &sites.edge1) {
        Ok(wireguard) => Some(wireguard),
        Err(error) => {
            found.remark(format!("wireguard-go is left out: {}", in_one_line(&error)));
            None
        }
    }
}

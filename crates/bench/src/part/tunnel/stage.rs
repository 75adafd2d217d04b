//! Sites with agents, and the ways from the first edge node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, Lab, LinkConditions, Namespace, Node, Place, Pod,
    SharedManifests, Sites, await_ok, leave_kubelets_signs,
};
use serde_json::Value;

use crate::contender::wireguard::WireGuard;
use crate::load::{Counted, LoadServer, ONCE, connections};
use crate::part::{Effort, Found, in_one_line};
use crate::processes::Processes;
use crate::stage::{service, tune};

/// ClusterIPs of the Services whose endpoints are in the cloud and on the other edge.
const IN_CLOUD: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
const ON_EDGE: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 2);
/// How long agents may take until they reach each other as they are to.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct TunnelStage {
    sites: Sites,
    ways: Vec<Way>,
    _agents: [Agent; 3],
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
        let cloud = sites.cloud1.pod("server-cloud1").create()?;
        let cloud_server = LoadServer::start(cloud.namespace())?;
        let edge = sites.edge2.pod("server-edge2").create()?;
        let edge_server = LoadServer::start(edge.namespace())?;
        let services = [
            service("default/in-cloud", IN_CLOUD).endpoint(&cloud),
            service("default/on-edge", ON_EDGE).endpoint(&edge),
        ];
        let mut agents = start_agents(lab, &sites, effort, &services)?;
        let pids: Result<Vec<u32>> = agents
            .iter_mut()
            .map(|agent| Ok(agent.process().context("an agent has ended")?.pid()))
            .collect();
        let pids = pids?;
        let mut ways = vec![Way {
            name: "plain TCP through the NAT".to_owned(),
            address: sites.cloud1.ipv4(),
            counted: host.shared(),
            processes: Processes::default(),
        }];
        let wireguard = start_wireguard(lab, &sites, effort, found);
        if let Some(wireguard) = &wireguard {
            ways.push(Way {
                name: "wireguard-go to the cloud".to_owned(),
                address: wireguard.address(),
                counted: host.shared(),
                processes: wireguard.processes(),
            });
        }
        let client = sites.edge1.namespace();
        await_way(&agents[1], client, IN_CLOUD, (&sites.cloud1, "direct"))?;
        ways.push(Way {
            name: "agent, to the cloud".to_owned(),
            address: IN_CLOUD,
            counted: cloud_server.shared(),
            processes: Processes::of(&pids[..2]),
        });
        match await_way(&agents[1], client, ON_EDGE, (&sites.edge2, between_edges)) {
            Ok(()) => ways.push(Way {
                name: format!("agent, edge to edge, {between_edges}"),
                address: ON_EDGE,
                counted: edge_server.shared(),
                processes: Processes::of(&pids),
            }),
            Err(error) => {
                found.remark(format!("edge to edge is left out: {}", in_one_line(&error)));
            }
        }
        ways.retain(|way| way.address == sites.cloud1.ipv4() || effort.takes(&way.name));
        Ok(Self {
            sites,
            ways,
            _agents: agents,
            _wireguard: wireguard,
            _servers: vec![
                (host, None),
                (cloud_server, Some(cloud)),
                (edge_server, Some(edge)),
            ],
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

/// Agents on the first cloud node, which is the relay, and on both edges.
fn start_agents(
    lab: &Lab,
    sites: &Sites,
    effort: &Effort,
    services: &[ClusterService],
) -> Result<[Agent; 3]> {
    let shared = SharedManifests::create(lab)?;
    shared.publish(services)?;
    let prepare = |node: &Node| -> Result<Agent> {
        leave_kubelets_signs(node, Flavour::Nft)?;
        let agent = Agent::prepare_sharing(lab, node, &effort.agent, &shared)?;
        agent.configure(&configuration(sites.cloud1.ipv4().into()))?;
        Ok(agent)
    };
    let mut agents = [
        prepare(&sites.cloud1)?,
        prepare(&sites.edge1)?,
        prepare(&sites.edge2)?,
    ];
    for agent in &mut agents {
        agent.start_without_waiting()?;
    }
    for agent in &mut agents {
        agent.await_ready()?;
    }
    Ok(agents)
}

fn configuration(relay: IpAddr) -> String {
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
         commonConfig:\n  terminationGracePeriod: 1s\n\
         modules:\n  edgeProxy:\n    enable: true\n  edgeTunnel:\n    enable: true\n    \
         relayNodes:\n    - nodeName: cloud1\n      advertiseAddress: [{relay}]\n"
    )
}

/// Asks until the answer comes, and by the way it is meant to.
fn await_way(
    agent: &Agent,
    client: &Namespace,
    service: Ipv4Addr,
    (peer, expected): (&Node, &str),
) -> Result<()> {
    let what = format!("{} is reached from edge1 {expected}", peer.name());
    await_ok(PATIENCE, &what, || {
        client.run(|| connections::once((service, ONCE).into()))??;
        let text = agent
            .command("status")
            .args(["--output", "json"])
            .run()
            .context("no status")?;
        let way = way_to(&text, peer.name())?;
        ensure!(way == expected, "it is {way}");
        Ok(())
    })
}

/// How packets go to a peer, by the agent's status.
fn way_to(status: &str, peer: &str) -> Result<String> {
    let status: Value = serde_json::from_str(status).context("the status is no JSON")?;
    let peers = status["tunnel"]["peers"]
        .as_array()
        .context("no peers in the status")?;
    let peer = peers.iter().find(|one| one["node"] == peer);
    let way = peer.and_then(|peer| peer["way"].as_str());
    Ok(way.unwrap_or("unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_peer_is_read_from_the_status() {
        let status = r#"{"tunnel":{"peers":[{"node":"cloud1","way":"direct"},{"node":"edge2"}]}}"#;
        assert_eq!(way_to(status, "cloud1").unwrap(), "direct");
        assert_eq!(way_to(status, "edge2").unwrap(), "unknown");
        assert_eq!(way_to(status, "edge3").unwrap(), "unknown");
        assert!(way_to("{}", "cloud1").is_err());
    }
}

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

/// ClusterIPs of the Services whose endpoints are on each node.
const ON_CLOUD1: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
const ON_CLOUD2: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 2);
const ON_EDGE2: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 3);
/// The key that lets an agent carry streams by TCP, too. The agents of the first edge node and
/// of the second cloud node have it; between these two it is used.
const CARRIER: &str = "modules.edgeTunnel.tcpCarrier";
/// How long agents may take until they reach each other as they are to.
const PATIENCE: Duration = Duration::from_secs(60);

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
        if let Some(wireguard) = &wireguard {
            ways.push(Way {
                name: "wireguard-go to the cloud".to_owned(),
                address: wireguard.address(),
                counted: host.shared(),
                processes: wireguard.processes(),
            });
        }
        let [on_cloud1, on_cloud2, on_edge2] = &served;
        let (cloud1, cloud2, edge2) = (&sites.cloud1, &sites.cloud2, &sites.edge2);
        let (edge, pids) = (&agents.edge1, agents.pids);
        let mut wanted = vec![(
            "agent, to the cloud".to_owned(),
            on_cloud1,
            cloud1,
            "direct",
            vec![pids.edge1, pids.cloud1],
        )];
        if agents.have_carrier {
            let name = "agent, to the cloud, TCP carrier".to_owned();
            wanted.push((
                name,
                on_cloud2,
                cloud2,
                "direct",
                vec![pids.edge1, pids.cloud2],
            ));
        } else {
            found.remark(format!(
                "the TCP carrier is left out: this agent has no key {CARRIER}"
            ));
        }
        let name = format!("agent, edge to edge, {between_edges}");
        let on_path = vec![pids.edge1, pids.edge2, pids.cloud1];
        wanted.push((name, on_edge2, edge2, between_edges, on_path));
        for (name, served, node, way, on_path) in wanted {
            if !effort.takes(&name) {
                continue;
            }
            match await_way(edge, sites.edge1.namespace(), served.address, (node, way)) {
                Ok(()) => ways.push(Way {
                    name,
                    address: served.address,
                    counted: served.load.shared(),
                    processes: Processes::of(&on_path),
                }),
                Err(error) => {
                    found.remark(format!("{name} is left out: {}", in_one_line(&error)));
                }
            }
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

/// The agents: that of the first cloud node is the relay.
struct Agents {
    edge1: Agent,
    pids: Pids,
    have_carrier: bool,
    _others: [Agent; 3],
}

#[derive(Clone, Copy)]
struct Pids {
    cloud1: u32,
    cloud2: u32,
    edge1: u32,
    edge2: u32,
}

impl Agents {
    fn start(
        lab: &Lab,
        sites: &Sites,
        effort: &Effort,
        services: &[ClusterService],
    ) -> Result<Self> {
        let shared = SharedManifests::create(lab)?;
        shared.publish(services)?;
        let relay = IpAddr::V4(sites.cloud1.ipv4());
        let prepare = |node: &Node| -> Result<Agent> {
            leave_kubelets_signs(node, Flavour::Nft)?;
            let agent = Agent::prepare_sharing(lab, node, &effort.agent, &shared)?;
            agent.configure(&configuration(relay, false))?;
            Ok(agent)
        };
        let (mut cloud1, mut edge2) = (prepare(&sites.cloud1)?, prepare(&sites.edge2)?);
        let (mut cloud2, mut edge1) = (prepare(&sites.cloud2)?, prepare(&sites.edge1)?);
        cloud1.start_without_waiting()?;
        edge2.start_without_waiting()?;
        let have_carrier = start_with_carrier(&mut edge1, relay)?;
        if have_carrier {
            start_with_carrier(&mut cloud2, relay)?;
        } else {
            cloud2.start()?;
        }
        cloud1.await_ready()?;
        edge2.await_ready()?;
        let pid = |agent: &mut Agent| -> Result<u32> {
            let process = agent.process().context("an agent has ended")?;
            Ok(process.pid())
        };
        let pids = Pids {
            cloud1: pid(&mut cloud1)?,
            cloud2: pid(&mut cloud2)?,
            edge1: pid(&mut edge1)?,
            edge2: pid(&mut edge2)?,
        };
        Ok(Self {
            edge1,
            pids,
            have_carrier,
            _others: [cloud1, cloud2, edge2],
        })
    }
}

/// Whether the agent knows of a second carrier; it is started in either case.
fn start_with_carrier(agent: &mut Agent, relay: IpAddr) -> Result<bool> {
    agent.configure(&configuration(relay, true))?;
    match agent.start() {
        Ok(()) => Ok(true),
        Err(error) if format!("{error:#}").contains(CARRIER) => {
            agent.configure(&configuration(relay, false))?;
            agent.start()?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn configuration(relay: IpAddr, carrier: bool) -> String {
    let key = CARRIER.rsplit('.').next().unwrap_or_default();
    let carrier = if carrier {
        format!("    {key}: true\n")
    } else {
        String::new()
    };
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
         commonConfig:\n  terminationGracePeriod: 1s\n\
         modules:\n  edgeProxy:\n    enable: true\n  edgeTunnel:\n    enable: true\n    \
         relayNodes:\n    - nodeName: cloud1\n      advertiseAddress: [{relay}]\n{carrier}"
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
    fn the_carrier_is_a_key_beside_those_of_the_tunnel() {
        let relay = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(configuration(relay, true).ends_with("[127.0.0.1]\n    tcpCarrier: true\n"));
        assert!(!configuration(relay, false).contains("tcpCarrier"));
    }

    #[test]
    fn the_way_to_a_peer_is_read_from_the_status() {
        let status = r#"{"tunnel":{"peers":[{"node":"cloud1","way":"direct"},{"node":"edge2"}]}}"#;
        assert_eq!(way_to(status, "cloud1").unwrap(), "direct");
        assert_eq!(way_to(status, "edge2").unwrap(), "unknown");
        assert_eq!(way_to(status, "edge3").unwrap(), "unknown");
        assert!(way_to("{}", "cloud1").is_err());
    }
}

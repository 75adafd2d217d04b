//! The agents of all sites, and how they reach each other.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, Lab, Namespace, Node, SharedManifests, Sites, await_ok,
    leave_kubelets_signs,
};
use serde_json::Value;

use crate::load::{ONCE, connections};
use crate::part::Effort;

/// The key that says whether an agent carries streams by TCP, too: those of the first edge node
/// and of the second cloud node do; between these two it is used.
pub(super) const CARRIER: &str = "modules.edgeTunnel.tcpCarrier";
/// How long agents may take until they reach each other as they are to.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agents: that of the first cloud node is the relay.
pub(super) struct Agents {
    pub(super) edge1: Agent,
    pub(super) pids: Pids,
    pub(super) have_carrier: bool,
    _others: [Agent; 3],
}

/// Their processes.
#[derive(Clone, Copy)]
pub(super) struct Pids {
    pub(super) cloud1: u32,
    pub(super) cloud2: u32,
    pub(super) edge1: u32,
    pub(super) edge2: u32,
}

impl Agents {
    pub(super) fn start(
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
            Ok(agent)
        };
        let (mut cloud1, mut edge2) = (prepare(&sites.cloud1)?, prepare(&sites.edge2)?);
        let (mut cloud2, mut edge1) = (prepare(&sites.cloud2)?, prepare(&sites.edge1)?);
        let have_carrier = start_with_carrier(&mut edge1, relay)?;
        let [with, without] = if have_carrier {
            [Carrier::Auto, Carrier::Off]
        } else {
            [Carrier::Unknown; 2]
        };
        for (agent, carrier) in [
            (&mut cloud1, without),
            (&mut cloud2, with),
            (&mut edge2, without),
        ] {
            agent.configure(&configuration(relay, carrier))?;
            agent.start_without_waiting()?;
        }
        for agent in [&mut cloud1, &mut cloud2, &mut edge2] {
            agent.await_ready()?;
        }
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

/// What an agent is told of the second carrier.
#[derive(Clone, Copy)]
enum Carrier {
    Auto,
    Off,
    /// Nothing: it is of a version that does not know of it.
    Unknown,
}

/// Whether the agent knows of a second carrier; it is started in either case.
fn start_with_carrier(agent: &mut Agent, relay: IpAddr) -> Result<bool> {
    agent.configure(&configuration(relay, Carrier::Auto))?;
    match agent.start() {
        Ok(()) => Ok(true),
        Err(error) if is_unknown_key(&format!("{error:#}")) => {
            agent.configure(&configuration(relay, Carrier::Unknown))?;
            agent.start()?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether an agent says that it knows no [`CARRIER`]; that its value is wrong is another thing.
fn is_unknown_key(error: &str) -> bool {
    let mut lines = error.lines();
    lines.any(|line| line.contains(CARRIER) && line.contains("unknown key"))
}

fn configuration(relay: IpAddr, carrier: Carrier) -> String {
    let key = CARRIER.rsplit('.').next().unwrap_or_default();
    let carrier = match carrier {
        Carrier::Auto => format!("    {key}: auto\n"),
        Carrier::Off => format!("    {key}: \"off\"\n"),
        Carrier::Unknown => String::new(),
    };
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
         commonConfig:\n  terminationGracePeriod: 1s\n\
         modules:\n  edgeProxy:\n    enable: true\n  edgeTunnel:\n    enable: true\n    \
         relayNodes:\n    - nodeName: cloud1\n      advertiseAddress: [{relay}]\n{carrier}"
    )
}

/// Asks until the answer comes, and by the way it is meant to.
pub(super) fn await_way(
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
        let told = |carrier| configuration(relay, carrier);
        assert!(told(Carrier::Auto).ends_with("[127.0.0.1]\n    tcpCarrier: auto\n"));
        assert!(told(Carrier::Off).ends_with("[127.0.0.1]\n    tcpCarrier: \"off\"\n"));
        assert!(!told(Carrier::Unknown).contains("tcpCarrier"));
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

//! Services with endpoints here and behind the tunnel, with real agents: the kernel and the
//! agent share them, and what the tunnel reaches now is the kernel's no more.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, KubeProxy, Lab, Place, Pod, Serve, Server, SharedManifests,
    Sites, await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(30);
const WEB: &str = "10.96.10.1:80";
const DNS: &str = "10.96.10.1:53";
/// Of so many, each of two endpoints has half, give or take six standard deviations.
const ASKED: u64 = 200;
const FAIR: std::ops::Range<u64> = 58..142;

/// A cloud node and an edge node behind a NAT, each with an endpoint and an agent that is not
/// started; the client is at the edge, where kube-proxy knows the endpoint there alone.
struct Stage {
    shared: SharedManifests,
    cloud: Agent,
    edge: Agent,
    client: Pod,
    cloud_web: Pod,
    edge_web: Pod,
    _sites: Sites,
    _servers: Vec<Server>,
    _kube_proxy: KubeProxy,
}

impl Stage {
    fn set(lab: &Lab, backend: &str) -> Result<Self> {
        let sites = Sites::builder().create(lab)?;
        let cloud_web = sites.cloud1.pod("cloud-web").create()?;
        let edge_web = sites.edge1.pod("edge-web").create()?;
        let client = sites.edge1.pod("client").create()?;
        let mut servers = Vec::new();
        for pod in [&cloud_web, &edge_web] {
            servers.push(pod.serve(8080, Serve::Identity)?);
            servers.push(pod.serve(5353, Serve::UdpIdentity)?);
        }
        let shared = SharedManifests::create(lab)?;
        let of_kube_proxy = [web().endpoint(&edge_web)];
        let kube_proxy = KubeProxy::start(&sites.edge1, Flavour::Nft, &of_kube_proxy)?;
        let agent = |node| -> Result<Agent> {
            let agent = Agent::prepare_sharing(lab, node, AGENT, &shared)?;
            agent.configure(&format!(
                "modules:\n  edgeProxy: {{enable: true, backend: {backend}}}\n  \
                 edgeTunnel: {{enable: true}}\n"
            ))?;
            Ok(agent)
        };
        Ok(Self {
            cloud: agent(&sites.cloud1)?,
            edge: agent(&sites.edge1)?,
            shared,
            client,
            cloud_web,
            edge_web,
            _sites: sites,
            _servers: servers,
            _kube_proxy: kube_proxy,
        })
    }

    fn publish(&self, service: ClusterService) -> Result<()> {
        self.shared.publish(&[service])
    }

    fn start_both(&mut self) -> Result<()> {
        self.cloud.start()?;
        self.edge.start()
    }

    /// Waits until the agent at the edge has so many portals for kernel and agent together,
    /// and has reached the cloud.
    fn await_shared(&self, portals: u64) -> Result<()> {
        await_ok(SOON, "kernel and agent share", || {
            let status = status(&self.edge)?;
            let found = &status["services"]["by_kernel_and_agent"];
            ensure!(found.as_u64() == Some(portals), "{}", status["services"]);
            Ok(())
        })?;
        await_ok(SOON, "the tunnel leads to the cloud", || {
            ensure!(self.client.ask(WEB, "hello")?.server == "cloud-web");
            Ok(())
        })
    }

    /// TCP connections and UDP flows that the agent at the edge has taken.
    fn taken_by_agent(&self) -> Result<(u64, u64)> {
        let status = status(&self.edge)?;
        let taken = |of: &str, what: &str| status[of][what].as_u64().context("no count");
        Ok((taken("tcp", "accepted")?, taken("udp", "opened")?))
    }
}

fn web() -> ClusterService {
    ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)
}

fn status(agent: &Agent) -> Result<serde_json::Value> {
    let text = agent.command("status").args(["--output", "json"]).run()?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

fn who_answers(ask: impl Fn() -> Result<String>) -> Result<BTreeMap<String, u64>> {
    let mut answers = BTreeMap::new();
    for _ in 0..ASKED {
        *answers.entry(ask()?).or_default() += 1;
    }
    Ok(answers)
}

fn shares_are_equal(lab: &Lab, backend: &str) -> Result<()> {
    let mut stage = Stage::set(lab, backend)?;
    stage.publish(web().endpoint(&stage.cloud_web).endpoint(&stage.edge_web))?;
    stage.start_both()?;
    stage.await_shared(2)?;
    let before = stage.taken_by_agent()?;
    let tcp = who_answers(|| Ok(stage.client.ask(WEB, "?")?.server))?;
    let udp = who_answers(|| Ok(stage.client.ask_udp(DNS, "?")?.server))?;
    let after = stage.taken_by_agent()?;
    for (answers, taken) in [(&tcp, after.0 - before.0), (&udp, after.1 - before.1)] {
        let of_cloud = *answers
            .get("cloud-web")
            .context("the cloud never answered")?;
        assert!(FAIR.contains(&of_cloud), "{answers:?}");
        assert_eq!(
            of_cloud, taken,
            "what the agent takes is the tunnel's: {answers:?}"
        );
    }
    let explained = stage.edge.command("explain").arg("default/web").run()?;
    let words: Vec<&str> = explained.split_whitespace().collect();
    let explained = words.join(" ");
    assert!(
        explained.contains("KERNEL AND AGENT: of 2 connections 1 by the kernel and 1 by the agent"),
        "{explained}"
    );
    Ok(())
}

#[test]
fn with_iptables_kernel_and_agent_have_equal_shares() -> Result<()> {
    test(|lab| shares_are_equal(lab, "iptables"))
}

#[test]
fn with_nftables_kernel_and_agent_have_equal_shares() -> Result<()> {
    test(|lab| shares_are_equal(lab, "nftables"))
}

#[test]
fn endpoint_of_a_node_that_becomes_a_peer_takes_the_tunnel_and_old_udp_flows_follow() -> Result<()>
{
    test(|lab| {
        let mut stage = Stage::set(lab, "auto")?;
        stage.publish(web().endpoint(&stage.cloud_web))?;
        stage.edge.start()?;
        let told = status(&stage.edge)?;
        assert_eq!(told["services"]["by_kernel"], 2, "no peer yet: {told}");
        let socket = stage.client.udp_socket(DNS)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let exchange = || -> Result<String> {
            socket.send(b"?")?;
            let mut answer = [0; 200];
            let length = socket.recv(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        };
        assert!(exchange().is_err(), "no way leads there natively");
        stage.cloud.start()?;
        await_ok(
            SOON,
            "the old socket is answered through the tunnel",
            || {
                let answer = exchange()?;
                ensure!(answer.starts_with("cloud-web saw "), "{answer}");
                Ok(())
            },
        )?;
        let told = status(&stage.edge)?;
        assert_eq!(told["services"]["by_kernel"], 0, "{told}");
        assert_eq!(stage.client.ask(WEB, "?")?.server, "cloud-web");
        Ok(())
    })
}

#[test]
fn client_that_keeps_its_endpoint_is_the_agents_where_the_tunnel_has_a_part() -> Result<()> {
    test(|lab| {
        let mut stage = Stage::set(lab, "auto")?;
        let both = web().endpoint(&stage.cloud_web).endpoint(&stage.edge_web);
        stage.publish(both.sticky(600))?;
        stage.start_both()?;
        await_ok(SOON, "affinity is the agent's", || {
            let status = status(&stage.edge)?;
            let reasons = &status["services"]["user_mode"];
            let reason = "sessionAffinity, and an endpoint is reached through the tunnel";
            ensure!(reasons[reason] == 2, "{reasons}");
            Ok(())
        })?;
        let first = stage.client.ask(WEB, "?")?.server;
        for _ in 0..20 {
            assert_eq!(stage.client.ask(WEB, "?")?.server, first);
        }
        Ok(())
    })
}

#[test]
fn without_its_agent_kube_proxy_has_both_parts() -> Result<()> {
    test(|lab| {
        let mut stage = Stage::set(lab, "auto")?;
        stage.publish(web().endpoint(&stage.cloud_web).endpoint(&stage.edge_web))?;
        stage.start_both()?;
        stage.await_shared(2)?;
        stage.edge.kill()?;
        await_ok(SOON, "kube-proxy takes every connection", || {
            for _ in 0..20 {
                let answer = stage.client.ask(WEB, "?")?;
                ensure!(answer.server == "edge-web", "{answer:?}");
            }
            Ok(())
        })
        .map_err(|error| anyhow!("after kill -9: {error:#}"))
    })
}

//! What an agent with a tunnel tells of it, and how the tunnel begins and ends with the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, KubeProxy, Lab, Place, Pod, Program, Protocol, Serve, Server,
    SharedManifests, Sites, Traffic, await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "10.96.10.1:80";
const DNS: &str = "10.96.10.1:53";

const CONFIGURATION: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                             kind: EdgeMeshAgent\n\
                             modules:\n  edgeProxy: {enable: true}\n  edgeTunnel: {enable: true}\n";

/// A cloud node with an endpoint, an edge node behind a NAT with a client, an agent on each.
struct Stage {
    sites: Sites,
    cloud: Agent,
    edge: Agent,
    client: Pod,
    _servers: Vec<Server>,
    _kube_proxies: Vec<KubeProxy>,
}

impl Stage {
    fn running(lab: &Lab) -> Result<Self> {
        let sites = Sites::builder().create(lab)?;
        let server = sites.cloud1.pod("server").create()?;
        let client = sites.edge1.pod("client").create()?;
        let servers = vec![
            server.serve(8080, Serve::Identity)?,
            server.serve(5353, Serve::UdpIdentity)?,
            server.serve(7777, Serve::Echo)?,
        ];
        let services = [ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080)
            .udp("dns", 53, 5353)
            .tcp("echo", 7, 7777)
            .endpoint(&server)];
        let shared = SharedManifests::create(lab)?;
        shared.publish(&services)?;
        let mut kube_proxies = Vec::new();
        let mut agents = Vec::new();
        for node in [&sites.cloud1, &sites.edge1] {
            kube_proxies.push(KubeProxy::start(node, Flavour::Nft, &services)?);
            let mut agent = Agent::prepare_sharing(lab, node, AGENT, &shared)?;
            agent.configure(CONFIGURATION)?;
            agent.start()?;
            agents.push(agent);
        }
        let [cloud, edge] = agents
            .try_into()
            .map_err(|_| anyhow::anyhow!("two agents"))?;
        let stage = Self {
            sites,
            cloud,
            edge,
            client,
            _servers: servers,
            _kube_proxies: kube_proxies,
        };
        stage.await_across()?;
        Ok(stage)
    }

    /// Waits until the client reaches the cloud.
    fn await_across(&self) -> Result<()> {
        await_ok(SOON, "the client reaches the cloud", || {
            let answer = self.client.ask(WEB, "hello")?;
            ensure!(answer.server == "server", "{answer:?}");
            Ok(())
        })
    }
}

fn status(agent: &Agent) -> Result<serde_json::Value> {
    let text = agent.command("status").args(["--output", "json"]).run()?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

#[test]
fn both_ends_tell_of_each_other_and_of_the_path_between_them() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab)?;
        stage.client.ask_udp(DNS, "hello")?;
        let told = status(&stage.edge)?;
        let peer = &told["tunnel"]["peers"][0];
        assert_eq!(peer["node"], "cloud1", "{told}");
        assert_eq!(peer["way"], "direct", "{told}");
        assert_eq!(
            peer["by"],
            format!("{}:20006", stage.sites.cloud1.ipv4()),
            "{told}"
        );
        assert_eq!(told["tunnel"]["believed"], 1, "{told}");
        assert!(told["tunnel"]["bytes_in"].as_u64() > Some(0), "{told}");

        let screen = stage.edge.command("status").run()?;
        assert!(screen.contains("cloud1: direct to"), "{screen}");
        let explained = stage.edge.command("explain").arg("default/web").run()?;
        let explained: Vec<&str> = explained.split_whitespace().collect();
        let explained = explained.join(" ");
        assert!(
            explained.contains("through the tunnel to node cloud1"),
            "{explained}"
        );
        let metrics = stage.cloud.get("/metrics")?;
        for line in [
            "edgemesh_tunnel_peers{way=\"direct\"} 1.0",
            "edgemesh_tunnel_peers_believed{} 1.0",
            "edgemesh_tunnel_peers_refused{} 0.0",
        ] {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        assert!(
            !metrics.contains("edge1"),
            "no name of a peer is a label: {metrics}"
        );
        Ok(())
    })
}

#[test]
fn a_stolen_key_is_told_with_what_to_do() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab)?;
        let folder = stage.edge.manifests_folder();
        let own = fs::read_to_string(folder.join("meshnode-cloud1.yaml"))?;
        let stolen = own.replace("name: \"cloud1\"", "name: \"cloud2\"");
        ensure!(stolen != own, "{own}");
        fs::write(folder.join("meshnode-cloud2.yaml"), stolen)?;
        fs::write(
            folder.join("node-cloud2.yaml"),
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: cloud2\n",
        )?;
        await_ok(SOON, "status tells who is not believed", || {
            let told = status(&stage.edge)?;
            let refused = &told["tunnel"]["refused"];
            let reasons: Vec<_> = refused
                .as_array()
                .into_iter()
                .flatten()
                .map(|peer| (peer["node"].clone(), peer["reason"].clone()))
                .collect();
            ensure!(
                reasons.contains(&("cloud2".into(), "NotSigned".into())),
                "{told}"
            );
            Ok(())
        })?;
        let log = stage.edge.log()?;
        assert!(log.contains("NotSigned"), "{log}");
        // Who is believed already stays so.
        stage.await_across()
    })
}

#[test]
fn an_agent_that_ends_in_order_is_known_to_be_gone_and_serves_again_when_it_is_back() -> Result<()>
{
    test(|lab| {
        let mut stage = Stage::running(lab)?;
        let ended = stage.cloud.stop()?;
        assert!(ended.success(), "{ended}");
        assert!(stage.client.ask(WEB, "hello").is_err());
        stage.cloud.start()?;
        stage.await_across()
    })
}

#[test]
fn a_node_is_handed_over_unnoticed_by_peers_and_the_next_agent_is_found_when_the_one_before_ends()
-> Result<()> {
    test(|lab| {
        let mut stage = Stage::running(lab)?;
        let held = stage
            .client
            .hold("10.96.10.1:7", Duration::from_millis(20))?;
        let asking =
            stage
                .client
                .keep_asking(Protocol::Tcp, WEB, Duration::from_millis(10), SOON)?;
        let log = lab.folder().join("next.log");
        let mut next = stage.cloud.run_command().arg("--take-over").start(log)?;
        next.await_log(SOON, "this agent holds the node now")?;
        next.await_log(SOON, "MeshNode is published")?;
        held.await_echo(SOON)?.check_whole()?;
        let asked = asking.stop()?;
        ensure!(asked.failed() == 0, "{asked:?}");
        // Peers stay with the one that they found first until it ends.
        drop(held);
        stage.cloud.stop()?;
        stage.await_across()?;
        next.stop(SOON)?;
        Ok(())
    })
}

#[test]
fn a_key_that_others_can_read_is_refused_and_the_node_stays_untouched() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let agent = Agent::prepare(lab, &node, AGENT)?;
        agent.configure(CONFIGURATION)?;
        let key = agent.state_folder().join("tunnel.key");
        fs::create_dir_all(agent.state_folder())?;
        fs::write(&key, "whatever")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
        let bounded = Program::new("timeout").args(["--kill-after=5", "20"]);
        let finished = agent.run_command().run_by(bounded).output()?;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!finished.status.success(), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(said.contains("tunnel.key"), "{said}");
        assert!(said.contains("chmod 600"), "{said}");
        assert!(said.contains("modules.edgeTunnel"), "{said}");
        assert!(!said.contains("whatever"), "{said}");
        let left = node
            .program("ip")
            .args(["address", "show", "dev", "lo"])
            .run()?;
        assert!(!left.contains("169.254.96.16"), "{left}");
        Ok(())
    })
}

//! A host whose FORWARD chain drops by default, as Docker sets it: whoever reaches a Service
//! beside kube-proxy alone reaches it when the agent's rules take it to the endpoint, too.
//! (`--nocapture` prints who that is.)

#![expect(clippy::print_stdout, reason = "figures for whoever asks for them")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, KubeProxy, KubeProxyMode, Lab, Node, Place, Pod, Serve, Server,
    await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(20);
const CLUSTER_IP: &str = "10.96.10.1";
const WEB: &str = "10.96.10.1:80";
const DNS: &str = "10.96.10.1:53";

/// A node with a client and the Service's endpoint, and another one that sends what is for the
/// ClusterIP by it.
struct Stage {
    node: Node,
    other: Node,
    client: Pod,
    web: Pod,
    agent: Agent,
    _kube_proxy: KubeProxy,
    _servers: [Server; 2],
}

/// Whether each was answered.
type Answered = BTreeMap<&'static str, bool>;

impl Stage {
    fn set(lab: &Lab, kube_proxy: KubeProxyMode) -> Result<Self> {
        let (node, other) = (lab.node("edge-1").create()?, lab.node("edge-2").create()?);
        let (client, web) = (node.pod("client").create()?, node.pod("web").create()?);
        let service = ClusterService::new("default/web")
            .cluster_ip(CLUSTER_IP)
            .tcp("http", 80, 8080)
            .udp("dns", 53, 5353)
            .endpoint(&web);
        let services = [service];
        let agent = Agent::prepare(lab, &node, AGENT)?;
        agent.publish(&services)?;
        let by_node = node.ipv4().to_string();
        let route = ["route", "add", CLUSTER_IP, "via", &by_node];
        other.program("ip").args(route).run()?;
        Ok(Self {
            _servers: [
                web.serve(8080, Serve::Identity)?,
                web.serve(5353, Serve::UdpIdentity)?,
            ],
            _kube_proxy: KubeProxy::start(&node, kube_proxy, &services)?,
            node,
            other,
            client,
            web,
            agent,
        })
    }

    fn forward(&self, rule: &[&str]) -> Result<()> {
        self.node.program("iptables-nft").args(rule).run()?;
        Ok(())
    }

    /// Lets pass what network plugins do: what pods begin, and answers to it (the firewall plugin
    /// of containernetworking `plugins/meta/firewall`).
    fn accept_what_pods_begin(&self) -> Result<()> {
        let pods = self.node.pod_range_v4();
        let answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"];
        let to_pods = ["-A", "FORWARD", "-d", &pods];
        self.forward(&[&to_pods[..], &answers, &["-j", "ACCEPT"]].concat())?;
        self.forward(&["-A", "FORWARD", "-s", &pods, "-j", "ACCEPT"])
    }

    /// Who is answered, over UDP and TCP alike.
    fn answered(&self) -> Result<Answered> {
        let places: [(&str, &dyn Asks); 4] = [
            ("a pod", &self.client),
            ("the host", &self.node),
            ("the endpoint itself", &self.web),
            ("who comes from elsewhere", &self.other),
        ];
        let mut all = Answered::new();
        for (who, place) in places {
            let over_udp = place.is_answered_over_udp();
            if over_udp {
                place.asks().with_context(|| format!("{who} over TCP"))?;
            }
            all.insert(who, over_udp);
        }
        Ok(all)
    }

    fn start_agent(&mut self) -> Result<()> {
        self.agent.start()?;
        await_ok(SOON, "the kernel has both portals", || {
            let status = self.agent.command("status").args(["--output", "json"]);
            let status: serde_json::Value = serde_json::from_str(&status.run()?)?;
            ensure!(status["services"]["by_kernel"] == 2, "{status}");
            Ok(())
        })
    }
}

/// A place of any kind.
trait Asks {
    fn asks(&self) -> Result<()>;
    fn is_answered_over_udp(&self) -> bool;
}

impl<P: Place> Asks for P {
    fn asks(&self) -> Result<()> {
        self.ask(WEB, "?").map(drop)
    }

    fn is_answered_over_udp(&self) -> bool {
        self.ask_udp(DNS, "?").is_ok()
    }
}

/// Where the plugin lets pass what pods begin: without that they reach nobody, whoever serves.
fn nobody_is_worse_off(mut stage: Stage) -> Result<()> {
    stage.forward(&["-P", "FORWARD", "DROP"])?;
    stage.accept_what_pods_begin()?;
    let behind_kube_proxy = stage.answered()?;
    println!("behind kube-proxy: {behind_kube_proxy:?}");
    ensure!(behind_kube_proxy["a pod"], "{behind_kube_proxy:?}");
    stage.start_agent()?;
    let behind_agent = stage.answered()?;
    println!("behind the agent: {behind_agent:?}");
    for (who, is_answered) in behind_agent {
        let was_answered = behind_kube_proxy[who];
        ensure!(
            is_answered || !was_answered,
            "{who} is not answered any more"
        );
    }
    Ok(())
}

#[test]
fn beside_kube_proxys_iptables_mode_nobody_is_worse_off() -> Result<()> {
    test(|lab| nobody_is_worse_off(Stage::set(lab, Flavour::Nft.into())?))
}

#[test]
fn beside_kube_proxys_nftables_mode_nobody_is_worse_off() -> Result<()> {
    test(|lab| nobody_is_worse_off(Stage::set(lab, KubeProxyMode::Nftables)?))
}

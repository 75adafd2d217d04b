//! What the kernel takes to endpoints by itself, with a real agent: who answers, whom the
//! endpoint sees, and what becomes of it when host, Service or operator change.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, Answer, ClusterService, Flavour, KubeProxy, KubeProxyMode, Lab, Node, Place, Pod, Serve,
    Server, await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(20);
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const DNS: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];

/// A node with a client, two endpoints, a kube-proxy and an agent that is not started.
struct Stage {
    node: Node,
    client: Pod,
    web_1: Pod,
    web_2: Pod,
    agent: Agent,
    kube_proxy: KubeProxy,
    backend: &'static str,
    _servers: Vec<Server>,
}

impl Stage {
    fn set(lab: &Lab, backend: &'static str, kube_proxy: KubeProxyMode) -> Result<Self> {
        let node = lab.node("edge-1").create()?;
        let (client, web_1, web_2) = (
            node.pod("client").create()?,
            node.pod("web-1").create()?,
            node.pod("web-2").create()?,
        );
        let mut servers = Vec::new();
        for pod in [&web_1, &web_2] {
            servers.push(pod.serve(8080, Serve::Identity)?);
            servers.push(pod.serve(5353, Serve::UdpIdentity)?);
        }
        let stage = Self {
            agent: Agent::prepare(lab, &node, AGENT)?,
            kube_proxy: KubeProxy::start(&node, kube_proxy, &[])?,
            client,
            web_1,
            web_2,
            node,
            backend,
            _servers: servers,
        };
        stage.configure("hybrid")?;
        Ok(stage)
    }

    fn configure(&self, datapath: &str) -> Result<()> {
        self.agent.configure(&format!(
            "modules:\n  edgeProxy:\n    enable: true\n    backend: {}\n    datapath: {datapath}\n",
            self.backend
        ))
    }

    /// Makes it the one Service of the cluster, for the agent and kube-proxy alike.
    fn publish(&mut self, service: &ClusterService) -> Result<()> {
        let services = std::slice::from_ref(service);
        self.agent.publish(services)?;
        self.kube_proxy.sync(services)
    }

    fn status(&self) -> Result<serde_json::Value> {
        self.json("status", &[])
    }

    fn explain(&self) -> Result<serde_json::Value> {
        self.json("explain", &["default/web"])
    }

    fn json(&self, command: &str, arguments: &[&str]) -> Result<serde_json::Value> {
        let command = self.agent.command(command).args(arguments);
        let text = command.args(["--output", "json"]).run()?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Waits until the agent has so many portals by the kernel, and so many in user mode.
    fn await_portals(&self, by_kernel: u64, in_user_mode: u64) -> Result<()> {
        await_ok(SOON, "the datapath is as expected", || {
            let status = self.status()?;
            let services = &status["services"];
            let reasons = services["user_mode"].as_object().context("no reasons")?;
            let user_mode: u64 = reasons.values().filter_map(serde_json::Value::as_u64).sum();
            let found = (services["by_kernel"].as_u64(), user_mode);
            ensure!(found == (Some(by_kernel), in_user_mode), "{services}");
            Ok(())
        })
    }

    /// TCP connections and UDP flows that the agent has taken.
    fn taken_by_agent(&self) -> Result<u64> {
        let status = self.status()?;
        let taken = |of: &str, what: &str| status[of][what].as_u64().context("no count");
        Ok(taken("tcp", "accepted")? + taken("udp", "opened")?)
    }

    /// Whom the endpoint sees: from the client, the host and the endpoint itself, over TCP
    /// and UDP, in both families.
    fn seen(&self) -> Result<Vec<(String, IpAddr)>> {
        let mut seen = Vec::new();
        let from: [(&str, &dyn Ask); 3] = [
            ("client", &self.client),
            ("host", &self.node),
            ("itself", &self.web_1),
        ];
        for (name, place) in from {
            for to in WEB {
                let answer = place.tcp(to)?;
                seen.push((
                    format!("{name} to {to}: {}", answer.server),
                    answer.client.ip(),
                ));
            }
            for to in DNS {
                let answer = place.udp(to)?;
                seen.push((
                    format!("{name} to {to}: {}", answer.server),
                    answer.client.ip(),
                ));
            }
        }
        Ok(seen)
    }
}

/// A place of any kind.
trait Ask {
    fn tcp(&self, to: &str) -> Result<Answer>;
    fn udp(&self, to: &str) -> Result<Answer>;
}

impl<P: Place> Ask for P {
    fn tcp(&self, to: &str) -> Result<Answer> {
        self.ask(to, "hello")
    }

    fn udp(&self, to: &str) -> Result<Answer> {
        self.ask_udp(to, "hello")
    }
}

fn web() -> ClusterService {
    ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)
}

fn answered_by(socket: &UdpSocket) -> Result<String> {
    socket.send(b"?")?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let (server, _) = answer.split_once(" saw ").context("no greeting")?;
    Ok(server.to_owned())
}

/// The tests for each way into the kernel.
macro_rules! by_each_way {
    ($($name:ident: $backend:literal beside $kube_proxy:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn endpoints_see_whom_they_see_behind_kube_proxy() -> Result<()> {
                test(|lab| same_clients_as_behind_kube_proxy(Stage::set(lab, $backend, $kube_proxy)?))
            }

            #[test]
            fn datapath_follows_the_operator_without_a_restart() -> Result<()> {
                test(|lab| operator_changes_the_datapath(Stage::set(lab, $backend, $kube_proxy)?))
            }

            #[test]
            fn clients_keep_their_endpoint_where_the_service_says_so() -> Result<()> {
                test(|lab| clients_keep_their_endpoint(Stage::set(lab, $backend, $kube_proxy)?))
            }

            #[test]
            fn udp_flow_keeps_its_endpoint_until_that_is_gone() -> Result<()> {
                test(|lab| udp_flow_keeps_its_endpoint(Stage::set(lab, $backend, $kube_proxy)?))
            }
        }
    )*};
}

by_each_way! {
    iptables_nft: "iptables" beside KubeProxyMode::Iptables(Flavour::Nft);
    iptables_legacy: "iptables" beside KubeProxyMode::Iptables(Flavour::Legacy);
    nftables: "nftables" beside KubeProxyMode::Iptables(Flavour::Nft);
    nftables_mode: "auto" beside KubeProxyMode::Nftables;
}

fn same_clients_as_behind_kube_proxy(mut stage: Stage) -> Result<()> {
    let service = web().endpoint(&stage.web_1);
    stage.publish(&service)?;
    let behind_kube_proxy = stage.seen()?;
    stage.agent.start()?;
    stage.await_portals(4, 0)?;
    ensure!(stage.seen()? == behind_kube_proxy, "{:?}", stage.seen()?);
    assert_eq!(stage.taken_by_agent()?, 0, "the kernel did it alone");
    // It was we who decided, not kube-proxy.
    let explained = stage.explain()?;
    for handler in explained["services"][0]["ports"][0]["portals"][0]["handlers"]
        .as_array()
        .context("no handlers")?
    {
        assert_eq!(handler["handler"], "edgemesh", "{explained}");
    }
    Ok(())
}

fn operator_changes_the_datapath(mut stage: Stage) -> Result<()> {
    let service = web().endpoint(&stage.web_1);
    stage.publish(&service)?;
    stage.configure("user")?;
    stage.agent.start()?;
    stage.await_portals(0, 4)?;
    let answer = stage.client.ask(WEB[0], "hello")?;
    assert_ne!(answer.client.ip(), IpAddr::V4(stage.client.ipv4()));
    let explained = stage.explain()?;
    let datapath = &explained["services"][0]["ports"][0]["portals"][0]["datapath"];
    assert_eq!(datapath["by"], "agent", "{explained}");
    assert_eq!(datapath["why"], "modules.edgeProxy.datapath is user");

    stage.configure("hybrid")?;
    stage.await_portals(4, 0)?;
    let answer = stage.client.ask(WEB[0], "hello")?;
    assert_eq!(answer.client.ip(), IpAddr::V4(stage.client.ipv4()));
    let shown = stage.agent.command("explain").arg("default/web").run()?;
    assert!(
        shown.contains("KERNEL: its endpoint is reached natively"),
        "{shown}"
    );
    Ok(())
}

fn clients_keep_their_endpoint(mut stage: Stage) -> Result<()> {
    let both = web().endpoint(&stage.web_1).endpoint(&stage.web_2);
    stage.publish(&both.sticky(600))?;
    stage.agent.start()?;
    stage.await_portals(4, 0)?;
    let places: [&dyn Ask; 2] = [&stage.client, &stage.node];
    for place in places {
        for to in WEB {
            let first = place.tcp(to)?.server;
            for _ in 0..15 {
                assert_eq!(place.tcp(to)?.server, first, "{to}");
            }
        }
        for to in DNS {
            let first = place.udp(to)?.server;
            for _ in 0..15 {
                assert_eq!(place.udp(to)?.server, first, "{to}");
            }
        }
    }
    assert_eq!(stage.taken_by_agent()?, 0);
    Ok(())
}

fn udp_flow_keeps_its_endpoint(mut stage: Stage) -> Result<()> {
    let one = web().endpoint(&stage.web_1);
    stage.publish(&one)?;
    stage.agent.start()?;
    stage.await_portals(4, 0)?;
    let mut sockets = Vec::new();
    for to in DNS {
        sockets.push(stage.client.udp_socket(to)?);
        sockets.push(stage.node.udp_socket(to)?);
    }
    for socket in &sockets {
        assert_eq!(answered_by(socket)?, "web-1");
    }
    stage.publish(&one.clone().endpoint(&stage.web_2))?;
    await_ok(SOON, "new flows reach the new endpoint", || {
        let answer = stage.client.ask_udp(DNS[0], "?")?;
        ensure!(answer.server == "web-2", "{answer:?}");
        Ok(())
    })?;
    for socket in &sockets {
        for _ in 0..5 {
            assert_eq!(answered_by(socket)?, "web-1", "its endpoint is still there");
        }
    }
    stage.publish(&web().endpoint(&stage.web_2))?;
    for socket in &sockets {
        await_ok(SOON, "the old socket is answered by who is left", || {
            let server = answered_by(socket)?;
            ensure!(server == "web-2", "{server}");
            Ok(())
        })?;
    }
    // What the kernel took goes on when the agent ends.
    stage.agent.stop()?;
    for socket in &sockets {
        assert_eq!(answered_by(socket)?, "web-2");
    }
    Ok(())
}

/// Tells the pod that its neighbours are on its own segment, as network plugins with a
/// bridge do: its answers don't come by the node.
fn let_neighbours_talk(stage: &Stage, pod: &Pod) -> Result<()> {
    for (family, range) in [
        ("-4", stage.node.pod_range_v4()),
        ("-6", stage.node.pod_range_v6()),
    ] {
        let route = [family, "route", "add", &range, "dev", "eth0"];
        pod.program("ip").args(route).run()?;
    }
    Ok(())
}

fn on_a_bridge(lab: &Lab) -> Result<Stage> {
    let mut stage = Stage::set(lab, "auto", Flavour::Nft.into())?;
    for pod in [&stage.client, &stage.web_1] {
        let_neighbours_talk(&stage, pod)?;
    }
    set_bridges_call(&stage, "0")?;
    let service = web().endpoint(&stage.web_1);
    stage.publish(&service)?;
    Ok(stage)
}

fn set_bridges_call(stage: &Stage, value: &str) -> Result<()> {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let parameter = format!("net.bridge.{name}");
        stage.node.namespace().sysctl(&parameter, value)?;
    }
    Ok(())
}

#[test]
fn bridges_are_shown_to_nat_where_an_endpoint_is_on_one() -> Result<()> {
    test(|lab| {
        let mut stage = on_a_bridge(lab)?;
        stage.agent.start()?;
        stage.await_portals(4, 0)?;
        for to in WEB {
            let answer = stage.client.ask(to, "hello")?;
            assert!(stage.client.addresses().contains(&answer.client.ip()));
        }
        let log = stage.agent.log()?;
        let said = log.matches("bridge-nf-call-iptables to 1").count();
        assert_eq!(said, 1, "{log}");
        Ok(())
    })
}

#[test]
fn bridge_that_somebody_keeps_from_nat_is_left_to_user_mode() -> Result<()> {
    test(|lab| {
        let mut stage = on_a_bridge(lab)?;
        stage.agent.start()?;
        stage.await_portals(4, 0)?;
        set_bridges_call(&stage, "0")?;
        stage.await_portals(0, 4)?;
        for to in WEB {
            assert_eq!(stage.client.ask(to, "hello")?.server, "web-1");
        }
        for to in DNS {
            assert_eq!(stage.client.ask_udp(to, "hello")?.server, "web-1");
        }
        let shown = stage.agent.command("explain").arg("default/web").run()?;
        let words: Vec<&str> = shown.split_whitespace().collect();
        let shown = words.join(" ");
        assert!(shown.contains("on bridge cni0"), "{shown}");
        assert!(shown.contains("somebody set it back"), "{shown}");
        set_bridges_call(&stage, "1")?;
        stage.await_portals(4, 0)
    })
}

#[test]
fn host_that_does_not_forward_is_made_to_for_ipv4_alone() -> Result<()> {
    test(|lab| {
        let mut stage = Stage::set(lab, "auto", Flavour::Nft.into())?;
        let service = web().endpoint(&stage.web_1);
        stage.publish(&service)?;
        for parameter in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            stage.node.namespace().sysctl(parameter, "0")?;
        }
        stage.agent.start()?;
        stage.await_portals(2, 2)?;
        assert_eq!(stage.client.ask(WEB[0], "hello")?.server, "web-1");
        let check = stage.agent.command("check").output()?.stdout;
        let words: Vec<&str> = check.split_whitespace().collect();
        let check = words.join(" ");
        assert!(
            check.contains("net.ipv6.conf.all.forwarding is 0"),
            "{check}"
        );
        // By the agent, for which nothing has to be forwarded.
        assert_eq!(stage.client.ask(WEB[1], "hello")?.server, "web-1");
        Ok(())
    })
}

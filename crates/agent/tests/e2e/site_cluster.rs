//! A cluster of three sites: the control plane and a relay node in a cloud, and two edge
//! nodes behind NATs, which have the same private addresses.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Answer, Background, ClusterService, Family, Flavour, Internet, Lab, Nat, Node, Place, Pod,
    Serve, Server, Site, await_ok, leave_kubelets_signs,
};
use serde_json::Value;

use crate::agent::{AgentSetup, FilterMode, RelayNode};
use crate::agents_rights::{
    MESH_NODES, POLICIES, apply_crd, apply_policy, kubeconfig_of_the_agents_pod,
};
use crate::api::KubeApi;
use crate::control_plane::ControlPlane;
use crate::kube_proxy::{KubeProxySetup, Mode};
use crate::logs::{Logs, show};
use crate::portals::Portals;
use crate::programs::Programs;
use crate::status::Status;

/// The bound of every wait. What shall be over within a time is measured elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

const FLAVOUR: Flavour = Flavour::Nft;

/// See the module. Everything runs but the agents.
#[derive(Debug)]
pub(crate) struct SiteCluster {
    /// In the cloud.
    pub(crate) control_plane: ControlPlane,
    /// In the cloud; the relay of the others.
    pub(crate) cloud: Member,
    /// Behind a NAT.
    pub(crate) edge1: Member,
    /// Behind another NAT.
    pub(crate) edge2: Member,
    logs: Logs,
    _internet: Internet,
}

/// A node, with a pod that asks and one that answers for a Service of its own.
#[derive(Debug)]
pub(crate) struct Member {
    /// Where it is.
    pub(crate) site: Site,
    /// It.
    pub(crate) node: Node,
    /// Who asks.
    pub(crate) client: Pod,
    /// How its agent is started, with the rights of the agent's pod.
    agent: AgentSetup,
    agents_log: PathBuf,
    running: Option<Background>,
    server: Pod,
    cluster_ip: String,
    _kube_proxy: Background,
    _listening: [Server; 3],
}

impl SiteCluster {
    /// Runs `scenario` in a new cluster whose edge nodes are behind NATs of this kind.
    pub(crate) fn with(
        lab: &Lab,
        nat: Nat,
        scenario: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut cluster = Self::start(lab, nat)?;
        show(&format!("[{nat}] cluster up after {:.1?}", start.elapsed()));
        scenario(&mut cluster)?;
        show(&format!(
            "[{nat}] scenario over after {:.1?}",
            start.elapsed()
        ));
        cluster.logs.discard();
        Ok(())
    }

    fn start(lab: &Lab, nat: Nat) -> Result<Self> {
        let logs = Logs::new()?;
        let programs = Programs::find()?;
        let internet = lab.internet()?;
        let cloud = internet.site("cloud").cloud().create()?;
        let [farm, shop] = ["farm", "shop"].map(|name| internet.site(name).behind(nat).create());
        let place = lab.node("control-plane").on(cloud.network()).create()?;
        let control_plane = ControlPlane::start_on(place, lab, &programs, logs.folder()?)?;
        let stage = Stage {
            lab,
            programs: &programs,
            control_plane: &control_plane,
            logs: logs.folder()?,
        };
        let mut cluster = Self {
            cloud: stage.member("cloud1", cloud, 1)?,
            edge1: stage.member("edge1", farm?, 2)?,
            edge2: stage.member("edge2", shop?, 3)?,
            control_plane,
            logs,
            _internet: internet,
        };
        cluster.populate()?;
        if programs.minor >= POLICIES {
            apply_policy(&cluster.api()?)?;
        }
        Ok(cluster)
    }

    /// The CRD, the Services, and a tunnel with the cloud node as relay for all.
    fn populate(&mut self) -> Result<()> {
        let api = self.api()?;
        apply_crd(&api, &self.cloud.node)?;
        await_ok(PATIENCE, "the server serves MeshNodes", || {
            api.get(MESH_NODES).map(|_| ())
        })?;
        let relay = RelayNode {
            node: self.cloud.node.name().to_owned(),
            address: self.cloud.node.ipv4(),
        };
        for member in [&mut self.cloud, &mut self.edge1, &mut self.edge2] {
            member.agent.tunnel = Some(relay.clone());
            api.apply_service(&member.service())?;
        }
        for member in self.members() {
            await_ok(PATIENCE, "kube-proxy serves the Services", || {
                let portals = Portals::read(&member.node, FLAVOUR, Family::V4)?;
                portals.kube_proxy_serves(&self.edge2.port_name())
            })
            .with_context(|| member.node.name().to_owned())?;
        }
        Ok(())
    }

    /// Starts all agents, and waits until each has said at which relay it is met and
    /// believes all others.
    pub(crate) fn start_agents(&mut self) -> Result<()> {
        for member in [&mut self.cloud, &mut self.edge1, &mut self.edge2] {
            member.start_agent()?;
        }
        let api = self.api()?;
        for member in self.members() {
            let name = member.node.name();
            await_ok(PATIENCE, "it is met at a relay", || {
                let published = mesh_node(&api, name)?;
                let relay = &published["spec"]["relayURL"];
                ensure!(relay.is_string(), "{published}");
                Ok(())
            })
            .with_context(|| name.to_owned())?;
            member.await_believed(2)?;
        }
        Ok(())
    }

    /// A client of the API server, who may do everything.
    pub(crate) fn api(&self) -> Result<KubeApi> {
        self.control_plane.api()
    }

    /// All nodes.
    pub(crate) fn members(&self) -> [&Member; 3] {
        [&self.cloud, &self.edge1, &self.edge2]
    }
}

/// The MeshNode of a node.
pub(crate) fn mesh_node(api: &KubeApi, name: &str) -> Result<Value> {
    api.get(&format!("{MESH_NODES}/{name}"))
}

/// What members are made of.
struct Stage<'a> {
    lab: &'a Lab,
    programs: &'a Programs,
    control_plane: &'a ControlPlane,
    logs: &'a Path,
}

impl Stage<'_> {
    fn member(&self, name: &str, site: Site, number: u8) -> Result<Member> {
        let node = self.lab.node(name).on(site.network()).create()?;
        leave_kubelets_signs(&node, FLAVOUR)?;
        let client = node.pod(&format!("client-on-{name}")).create()?;
        let server = node.pod(&format!("server-on-{name}")).create()?;
        let rights = kubeconfig_of_the_agents_pod(self.control_plane, &node)?;
        let folder = self.lab.new_folder(name)?;
        let kubeconfig = self.control_plane.kubeconfig()?;
        let kube_proxy = KubeProxySetup::new(self.programs, &folder, FLAVOUR, kubeconfig)?
            .run(&node, Mode::Iptables)
            .start(self.logs.join(format!("kube-proxy-{name}.log")))?;
        Ok(Member {
            agent: AgentSetup::new(&folder, rights),
            agents_log: self.logs.join(format!("agent-{name}.log")),
            running: None,
            _listening: [
                server.serve(8080, Serve::Identity)?,
                server.serve(5353, Serve::UdpIdentity)?,
                server.serve(7, Serve::Echo)?,
            ],
            cluster_ip: format!("10.96.10.{number}"),
            _kube_proxy: kube_proxy,
            site,
            node,
            client,
            server,
        })
    }
}

impl Member {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.node.name()
    }

    /// The Service whose only endpoint is its pod.
    fn service(&self) -> ClusterService {
        ClusterService::new(&format!("default/on-{}", self.name()))
            .cluster_ip(&self.cluster_ip)
            .tcp("http", 80, 8080)
            .udp("dns", 53, 5353)
            .tcp("echo", 7, 7)
            .endpoint(&self.server)
    }

    /// A port of its Service as it stands in rules.
    fn port_name(&self) -> String {
        format!("default/on-{}:http", self.name())
    }

    /// Where its Service sends back what comes.
    pub(crate) fn echo(&self) -> String {
        format!("{}:7", self.cluster_ip)
    }

    /// Starts its agent.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        let program = self.agent.run(&self.node, FilterMode::IfLabelExists)?;
        self.running = Some(program.start(&self.agents_log)?);
        Ok(())
    }

    /// Ends its agent as kubelet does.
    pub(crate) fn stop_agent(&mut self) -> Result<()> {
        let mut agent = self.running.take().context("no agent runs")?;
        let status = agent.stop(PATIENCE)?;
        let name = self.node.name();
        ensure!(
            status.success(),
            "the agent of {name} ended with {status}: {}",
            agent.log_tail(30)
        );
        Ok(())
    }

    /// What its agent says of itself.
    pub(crate) fn status(&self) -> Result<Status> {
        Status::ask(&self.agent, &self.node).with_context(|| self.name().to_owned())
    }

    /// Waits until its agent believes so many others.
    pub(crate) fn await_believed(&self, wanted: u64) -> Result<()> {
        let what = format!("{} believes {wanted} others", self.name());
        await_ok(PATIENCE, &what, || {
            let believed = self.status()?.believed()?;
            ensure!(believed == wanted, "it believes {believed}");
            Ok(())
        })
    }

    /// Waits until pod and host here are answered by the pod on `to`, by TCP and UDP, at the
    /// ClusterIP.
    pub(crate) fn await_answered_by(&self, to: &Self) -> Result<()> {
        let what = format!("{} is answered by {}", self.name(), to.name());
        await_ok(PATIENCE, &what, || self.answered_by(to))
    }

    /// Fails unless pod and host here are answered by the pod on `to`, by TCP and UDP, at
    /// the ClusterIP.
    pub(crate) fn answered_by(&self, to: &Self) -> Result<()> {
        let (tcp, udp) = (
            format!("{}:80", to.cluster_ip),
            format!("{}:53", to.cluster_ip),
        );
        to.has_answered(&self.client.ask(&tcp, "hello")?)?;
        to.has_answered(&self.client.ask_udp(&udp, "hello")?)?;
        to.has_answered(&self.node.ask(&tcp, "hello")?)?;
        to.has_answered(&self.node.ask_udp(&udp, "hello")?)
    }

    /// Its pod was asked by its own node: an agent there has carried the request out.
    fn has_answered(&self, answer: &Answer) -> Result<()> {
        let server = self.server.name();
        ensure!(
            answer.server == server && answer.echo == "hello",
            "{} sent back {:?} instead of {server}",
            answer.server,
            answer.echo
        );
        let seen = answer.client.ip();
        ensure!(
            self.node.pod_gateways().contains(&seen),
            "{server} was asked by {seen}, not by its own node"
        );
        Ok(())
    }
}

//! What stands on the playground: a cluster of three nodes on three sites.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Family, Flavour, Internet, KubeProxy, Lab, Nat, Node, Place, Pod,
    RuleList, Serve, Server, SharedManifests, Site, Stray, StrayKind, Table,
};

use super::path::{Ends, Path};
use crate::ask;
use crate::explain::Query;
use crate::status::StatusReport;
use crate::tunnel::TunnelReport;

/// The label that leaves a Service to kube-proxy.
pub(super) const FILTER_LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

/// The ports that each Service has, by their numbers at the ClusterIP.
pub(super) mod ports {
    /// TCP, answers with the name of its pod: `http`.
    pub(crate) const HTTP: u16 = 80;
    /// UDP, answers with the name of its pod: `stats`.
    pub(crate) const STATS: u16 = 9000;
    /// TCP, sends as much as it is asked for: `files`.
    pub(crate) const FILES: u16 = 8000;
    /// TCP and UDP, sends back what comes: `echo`, `echo-udp`.
    pub(crate) const ECHO: u16 = 7;
}

/// All there is.
pub(super) struct Cluster {
    pub(super) flavour: Flavour,
    /// On a site with public addresses; the relay for the others.
    pub(super) cloud: Member,
    /// On a site behind a NAT.
    pub(super) edge1: Member,
    /// On another site behind a NAT, with the same private addresses.
    pub(super) edge2: Member,
    shared: SharedManifests,
    _internet: Internet,
}

/// A node with its site, its agent, its kube-proxy, a pod that asks and one that answers for
/// a Service of its own.
pub(super) struct Member {
    pub(super) site: Site,
    pub(super) node: Node,
    pub(super) client: Pod,
    pub(super) agent: Agent,
    pub(super) service: ClusterService,
    kube_proxy: Option<KubeProxy>,
    _servers: Vec<Server>,
}

impl Cluster {
    /// Builds everything; neither kube-proxies nor agents run yet.
    pub(super) fn build(lab: &Lab, flavour: Flavour) -> Result<Self> {
        let internet = lab.internet()?;
        let shared = SharedManifests::create(lab)?;
        let cloud = internet.site("cloud").cloud().create()?;
        let farm = internet.site("farm").create()?;
        let shop = internet.site("shop").create()?;
        let member = |name, site, app, number| Member::build(lab, name, site, app, number, &shared);
        let cluster = Self {
            flavour,
            cloud: member("cloud-1", cloud, "orders", 1)?,
            edge1: member("edge-1", farm, "camera", 2)?,
            edge2: member("edge-2", shop, "meter", 3)?,
            shared,
            _internet: internet,
        };
        let configuration = configuration(&cluster.cloud.node);
        for member in cluster.members() {
            member.agent.configure(&configuration)?;
        }
        cluster.shared.publish(&cluster.services())?;
        Ok(cluster)
    }

    pub(super) fn members(&self) -> [&Member; 3] {
        [&self.cloud, &self.edge1, &self.edge2]
    }

    pub(super) fn members_mut(&mut self) -> [&mut Member; 3] {
        [&mut self.cloud, &mut self.edge1, &mut self.edge2]
    }

    pub(super) fn start_kube_proxies(&mut self) -> Result<()> {
        let (flavour, services) = (self.flavour, self.services());
        for member in self.members_mut() {
            member.kube_proxy = Some(KubeProxy::start(&member.node, flavour, &services)?);
        }
        Ok(())
    }

    /// Puts [`FILTER_LABEL`] on the Service of `edge1`, or takes it away. kube-proxy does not
    /// look at it.
    pub(super) fn set_label(&self, present: bool) -> Result<()> {
        let mut services = self.services();
        if present {
            let labelled = self.edge1.service.clone().label(FILTER_LABEL, "");
            services.retain(|service| *service != self.edge1.service);
            services.push(labelled);
        }
        self.shared.publish(&services)
    }

    /// By which path `from` reaches `to` now, as the agent there tells.
    pub(super) fn path(&self, from: &Member, to: &Member) -> Result<Path> {
        let tunnel = from.tunnel()?;
        let peer = tunnel.peers.iter().find(|peer| peer.node == to.node.name());
        let ends = Ends {
            from_behind_nat: from.public_address_of_nat().is_some(),
            nat_of_other: to.public_address_of_nat(),
        };
        Ok(peer.map_or(Path::Other("idle".to_owned()), |peer| Path::of(peer, ends)))
    }

    /// What any node has sent to anybody outside the cluster. What was meant for a private
    /// address that is not there is left out: kube-proxy sends so to pods of other sites.
    pub(super) fn strays(&self) -> Result<Vec<Stray>> {
        let mut strays = Vec::new();
        for member in self.members() {
            strays.extend(member.site.strays()?);
        }
        strays.retain(|stray| stray.kind() != StrayKind::Private);
        Ok(strays)
    }

    fn services(&self) -> Vec<ClusterService> {
        self.members().map(|member| member.service.clone()).to_vec()
    }
}

impl Member {
    fn build(
        lab: &Lab,
        name: &str,
        site: Site,
        app: &str,
        number: u8,
        shared: &SharedManifests,
    ) -> Result<Self> {
        let node = lab.node(name).on(site.network()).create()?;
        let client = node.pod(&format!("client-on-{name}")).create()?;
        let server = node.pod(app).create()?;
        let executable = std::env::current_exe().context("cannot find this executable")?;
        Ok(Self {
            agent: Agent::prepare_sharing(lab, &node, executable, shared)?,
            service: service(app, number, &server),
            kube_proxy: None,
            _servers: serve(&server)?,
            site,
            node,
            client,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.node.name()
    }

    /// `namespace/name` of its Service.
    pub(super) fn service_name(&self) -> String {
        let ClusterService {
            namespace, name, ..
        } = &self.service;
        format!("{namespace}/{name}")
    }

    /// A ClusterIP of its Service, as it stands before a port.
    pub(super) fn cluster_ip(&self, family: Family) -> Result<String> {
        let is_v6 = family == Family::V6;
        let mut all = self.service.cluster_ips.iter();
        let Some(address) = all.find(|address| address.contains(':') == is_v6) else {
            bail!("{} has no ClusterIP of {family:?}", self.service_name());
        };
        Ok(if is_v6 {
            format!("[{address}]")
        } else {
            address.clone()
        })
    }

    /// Where its site is seen from outside, if it is behind a NAT.
    pub(super) fn public_address_of_nat(&self) -> Option<Ipv4Addr> {
        (self.site.nat() != Nat::None).then(|| self.site.uplink().public_address())
    }

    /// What its agent tells.
    pub(super) fn status(&self) -> Result<StatusReport> {
        self.node
            .namespace()
            .run(ask::status)?
            .with_context(|| format!("ask the agent on {}", self.name()))
    }

    /// What its agent tells of the tunnel.
    pub(super) fn tunnel(&self) -> Result<TunnelReport> {
        let tunnel = self.status()?.tunnel;
        tunnel.with_context(|| format!("the agent on {} has no tunnel", self.name()))
    }

    /// Checks that its MeshNode tells where it is met, and that its agent means to reach the
    /// Services of `others` through the tunnel.
    pub(super) fn check_in_touch(&self, others: &[&Self]) -> Result<()> {
        let mesh_node = format!("meshnode-{}.yaml", self.name());
        let path = self.agent.manifests_folder().join(mesh_node);
        let written = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        ensure!(
            written.contains("relayURL:"),
            "{} is at no relay",
            self.name()
        );
        for other in others {
            let query: Query = other.service_name().parse()?;
            let explained = self.node.namespace().run(|| ask::explain(&query))??;
            let ports = explained.services.iter().flat_map(|service| &service.ports);
            let portals = ports.flat_map(|port| &port.portals);
            for endpoint in portals.flat_map(|portal| &portal.endpoints) {
                ensure!(
                    endpoint.path.starts_with("through the tunnel"),
                    "{} would reach {} {}",
                    self.name(),
                    endpoint.address,
                    endpoint.path
                );
            }
        }
        Ok(())
    }

    /// What its agent complained of, newest last.
    pub(super) fn complaints(&self) -> Vec<String> {
        let log = self.agent.log().unwrap_or_default();
        let lines = log.lines().filter(|line| {
            let mut words = line.split_whitespace();
            matches!(words.nth(1), Some("WARN" | "ERROR"))
        });
        lines.map(str::to_owned).collect()
    }

    pub(super) fn nat_table(&self, flavour: Flavour, family: Family) -> Result<RuleList> {
        RuleList::read(&self.node, flavour, family, Table::Nat)
    }
}

/// What every agent is configured with.
fn configuration(relay: &Node) -> String {
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1
kind: EdgeMeshAgent
modules:
  edgeProxy:
    enable: true
  edgeTunnel:
    enable: true
    relayNodes:
    - nodeName: {}
      advertiseAddress:
      - {}
",
        relay.name(),
        relay.ipv4()
    )
}

fn service(app: &str, number: u8, pod: &Pod) -> ClusterService {
    ClusterService::new(&format!("default/{app}"))
        .cluster_ip(&format!("10.96.10.{number}"))
        .cluster_ip(&format!("fd00:96::{number}"))
        .tcp("http", ports::HTTP, 8080)
        .udp("stats", ports::STATS, 9000)
        .tcp("files", ports::FILES, 8000)
        .tcp("echo", ports::ECHO, 7)
        .udp("echo-udp", ports::ECHO, 7)
        .endpoint(pod)
}

fn serve(pod: &Pod) -> Result<Vec<Server>> {
    [
        (8080, Serve::Identity),
        (9000, Serve::UdpIdentity),
        (8000, Serve::Pattern),
        (7, Serve::Echo),
        (7, Serve::UdpEcho),
    ]
    .into_iter()
    .map(|(port, kind)| pod.serve(port, kind))
    .collect()
}

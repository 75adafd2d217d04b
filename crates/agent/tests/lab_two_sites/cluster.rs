//! Four nodes on three sites, each with an agent, a stand-in kube-proxy and two pods.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Endpoint, Flavour, KubeProxy, Lab, Nat, Node, Place, Pod, Serve, Server,
    SharedManifests, Site, Sites, await_ok,
};

use crate::figures::{Metrics, Status};
use crate::places::{At, Here, Of, On};
use crate::scenario::LONG;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");

/// Ports of every Service: what is behind them is told by [`Serve`].
pub(crate) const IDENTITY: u16 = 80;
pub(crate) const ECHO: u16 = 7;
pub(crate) const PATTERN: u16 = 90;
pub(crate) const RESET: u16 = 83;
pub(crate) const UDP_IDENTITY: u16 = 53;

/// What each pod for servers, and each host, serves: name, port of the Service, port of the
/// endpoint, and what.
const SERVED: [(&str, u16, u16, Serve); 6] = [
    ("identity", IDENTITY, 8080, Serve::Identity),
    ("echo", ECHO, 8007, Serve::Echo),
    ("pattern", PATTERN, 8090, Serve::Pattern),
    ("reset", RESET, 8083, Serve::Reset),
    ("udp-identity", UDP_IDENTITY, 8053, Serve::UdpIdentity),
    ("udp-echo", ECHO, 8007, Serve::UdpEcho),
];

/// The nodes whose agents are relays, unless a scenario has others.
pub(crate) const RELAYS: [On; 2] = [On::Cloud1, On::Cloud2];

/// The stage of a scenario.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) sites: Sites,
    pub(crate) shared: SharedManifests,
    members: Vec<Member>,
    services: Vec<ClusterService>,
}

/// What is on a node.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) agent: Agent,
    client: Pod,
    pub(crate) server: Pod,
    kube_proxy: KubeProxy,
    _servers: Vec<Server>,
}

impl Cluster {
    /// All but running agents: Services with one endpoint each, on the pod and on the host of
    /// every node, and who serves there.
    pub(crate) fn prepare(lab: &Lab, sites: Sites) -> Result<Self> {
        let shared = SharedManifests::create(lab)?;
        let mut members = Vec::new();
        for node in sites.nodes() {
            members.push(Member::prepare(lab, node, &shared)?);
        }
        let mut cluster = Self {
            sites,
            shared,
            members,
            services: Vec::new(),
        };
        cluster.configure(&RELAYS)?;
        let services: Result<_> = At::all().map(|at| cluster.service_at(at)).collect();
        cluster.publish(services?)?;
        Ok(cluster)
    }

    /// The Service whose only endpoint is at `at`.
    fn service_at(&self, at: At) -> Result<ClusterService> {
        let mut service = ClusterService::new(&at.service())
            .cluster_ip(&at.cluster_ip(0).ip().to_string())
            .cluster_ip(&at.cluster_ip_v6(0).ip().to_string());
        for (name, port, target, serve) in SERVED {
            service = match serve {
                Serve::UdpEcho | Serve::UdpIdentity => service.udp(name, port, target),
                _ => service.tcp(name, port, target),
            };
        }
        service.endpoints.push(self.endpoint(at));
        Ok(service)
    }

    /// The endpoint at `at`; a host's has the node's addresses, as with `hostNetwork`.
    pub(crate) fn endpoint(&self, at: At) -> Endpoint {
        let node = self.node(at.0);
        let addresses = match at.1 {
            Of::Pod => self.member(at.0).server.addresses(),
            Of::Host => {
                let v6 = node.ipv6().map(IpAddr::V6);
                [IpAddr::V4(node.ipv4())].into_iter().chain(v6).collect()
            }
        };
        Endpoint {
            addresses,
            node: Some(node.name().to_owned()),
            ready: true,
        }
    }

    /// Makes these the Services of the cluster, for agents and kube-proxies.
    pub(crate) fn publish(&mut self, services: Vec<ClusterService>) -> Result<()> {
        self.shared.publish(&services)?;
        for member in &mut self.members {
            member.kube_proxy.sync(&services)?;
        }
        self.services = services;
        Ok(())
    }

    /// Publishes one Service more.
    pub(crate) fn publish_also(&mut self, service: ClusterService) -> Result<()> {
        let mut services = self.services.clone();
        services.push(service);
        self.publish(services)
    }

    /// Writes the configuration of all agents, with these nodes as relays.
    pub(crate) fn configure(&self, relays: &[On]) -> Result<()> {
        for member in &self.members {
            member.agent.configure(&self.configuration(relays))?;
        }
        Ok(())
    }

    /// The same, with agents that let connections go on for `grace` when they end.
    pub(crate) fn configure_with_grace(&self, grace: &str) -> Result<()> {
        for member in &self.members {
            let text = self.configuration(&RELAYS);
            let key = "terminationGracePeriod: ";
            let changed = text.replace(&format!("{key}1s"), &format!("{key}{grace}"));
            ensure!(changed != text, "{text}");
            member.agent.configure(&changed)?;
        }
        Ok(())
    }

    /// Without probes: it is the tunnel that is looked at here, between the cloud's nodes and
    /// to the cloud's own addresses, too, which need none.
    fn configuration(&self, relays: &[On]) -> String {
        let mut text = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                        kind: EdgeMeshAgent\n\
                        commonConfig:\n  terminationGracePeriod: 1s\n\
                        modules:\n  edgeProxy:\n    enable: true\n    reachability: {probe: false}\n  \
                        edgeTunnel:\n    enable: true\n    relayNodes:\n"
            .to_owned();
        for relay in relays {
            let _ = writeln!(
                text,
                "    - nodeName: {}\n      advertiseAddress: [{}]",
                relay.name(),
                self.node(*relay).ipv4()
            );
        }
        text
    }

    /// Starts all agents and waits until each believes all others.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        self.start(&On::ALL)
    }

    /// Starts these agents and waits until each is ready and believes all others that run.
    pub(crate) fn start(&mut self, nodes: &[On]) -> Result<()> {
        for node in nodes {
            self.member_mut(*node).agent.start_without_waiting()?;
        }
        for node in nodes {
            let agent = &mut self.member_mut(*node).agent;
            agent
                .await_ready()
                .with_context(|| format!("on {}", node.name()))?;
        }
        for node in nodes {
            self.await_at_home(*node)?;
        }
        let mut running = Vec::new();
        for on in On::ALL {
            if self.agent_mut(on).process().is_some() {
                running.push(on);
            }
        }
        let pairs = nodes
            .iter()
            .flat_map(|from| running.iter().map(move |to| (*from, *to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            self.await_planned_by_tunnel(from, to)?;
        }
        Ok(())
    }

    /// Waits until an agent has told its peers at which relay it can be met.
    pub(crate) fn await_at_home(&self, on: On) -> Result<()> {
        let file = format!("meshnode-{}.yaml", on.name());
        let path = self.shared.folder().join(file);
        let what = format!("{} is at home at a relay", on.name());
        await_ok(LONG, &what, || {
            let text = fs::read_to_string(&path)?;
            ensure!(text.contains("relayURL"), "{text}");
            Ok(())
        })
    }

    /// Waits until an agent has believed another, and knows its endpoints by the tunnel.
    pub(crate) fn await_planned_by_tunnel(&self, from: On, to: On) -> Result<()> {
        let expected = format!("through the tunnel to node {}", to.name());
        let service = At(to, Of::Pod).service();
        let what = format!("on {} {service} is {expected}", from.name());
        await_ok(LONG, &what, || {
            let agent = &self.member(from).agent;
            let text = agent.command("explain").arg(&service).run()?;
            let words: Vec<&str> = text.split_whitespace().collect();
            ensure!(words.join(" ").contains(&expected), "{text}");
            Ok(())
        })
    }

    /// Another site, behind a NAT that only a relay gets through.
    pub(crate) fn mobile_site(&self) -> Result<Site> {
        let site = self.sites.internet.site("mobile");
        site.behind(Nat::Symmetric).create()
    }

    /// Moves a node to another site, and lets the cluster know of its addresses there.
    pub(crate) fn move_to(&self, on: On, site: &Site) -> Result<()> {
        self.node(on).move_to(site.network())?;
        self.shared.publish_node(self.node(on))
    }

    pub(crate) fn node(&self, on: On) -> &Node {
        self.sites.nodes()[on.index()]
    }

    pub(crate) fn member(&self, on: On) -> &Member {
        &self.members[on.index()]
    }

    pub(crate) fn member_mut(&mut self, on: On) -> &mut Member {
        &mut self.members[on.index()]
    }

    pub(crate) fn agent_mut(&mut self, on: On) -> &mut Agent {
        &mut self.member_mut(on).agent
    }

    /// A place to ask from.
    pub(crate) fn at(&self, at: At) -> Here {
        let namespace = match at.1 {
            Of::Pod => self.member(at.0).client.namespace(),
            Of::Host => self.node(at.0).namespace(),
        };
        Here(namespace.clone())
    }

    /// The client pod of a node.
    pub(crate) fn pod(&self, on: On) -> Here {
        self.at(At(on, Of::Pod))
    }

    /// What the agent on a node says of itself.
    pub(crate) fn status(&self, on: On) -> Result<Status> {
        Status::ask(&self.member(on).agent)
    }

    /// What the agent on a node counts.
    pub(crate) fn metrics(&self, on: On) -> Result<Metrics> {
        Metrics::ask(&self.member(on).agent)
    }

    /// Waits until packets from one node to another go this way (`direct`, `relayed`).
    pub(crate) fn await_way(&self, from: On, to: On, way: &str) -> Result<()> {
        let what = format!("the way from {} to {} is {way}", from.name(), to.name());
        await_ok(LONG, &what, || {
            let present = self.status(from)?.way(to);
            ensure!(present == way, "it is {present}");
            Ok(())
        })
    }

    /// Waits until all that a node carried has ended.
    pub(crate) fn await_nothing_goes_on(&self, on: On) -> Result<()> {
        let what = format!("nothing goes on at {}", on.name());
        await_ok(LONG, &what, || {
            let going_on = self.metrics(on)?.going_on();
            ensure!(going_on == 0.0, "{going_on} go on");
            Ok(())
        })
    }

    /// Copies the agents' logs to the folder that `EDGEMESH_LAB_LOGS` names, if it names one.
    pub(crate) fn keep_logs(&self) -> Result<()> {
        let Some(folder) = std::env::var_os("EDGEMESH_LAB_LOGS") else {
            return Ok(());
        };
        for on in On::ALL {
            let log = self.member(on).agent.log().unwrap_or_default();
            let path = Path::new(&folder).join(format!("{}.log", on.name()));
            fs::write(&path, log).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// How every agent saw its peers, and what it wrote last: for a scenario that failed.
    pub(crate) fn last_words(&self) -> String {
        let mut words = "the agents' last words:\n".to_owned();
        for on in On::ALL {
            let _ = writeln!(words, "--- {}", on.name());
            match self.status(on) {
                Ok(status) => words += &status.peers(),
                Err(error) => words += &format!("{error:#}\n"),
            }
            let log = self.member(on).agent.log().unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(25)..] {
                let _ = writeln!(words, "{line}");
            }
        }
        words
    }
}

impl Member {
    fn prepare(lab: &Lab, node: &Node, shared: &SharedManifests) -> Result<Self> {
        let name = node.name();
        let server = node.pod(&format!("server-{name}")).create()?;
        let mut servers = Vec::new();
        for (_, _, target, serve) in SERVED {
            servers.push(server.serve(target, serve)?);
            servers.push(node.serve(target, serve)?);
        }
        Ok(Self {
            agent: Agent::prepare_sharing(lab, node, AGENT, shared)?,
            client: node.pod(&format!("client-{name}")).create()?,
            server,
            kube_proxy: KubeProxy::start(node, Flavour::Nft, &[])?,
            _servers: servers,
        })
    }
}

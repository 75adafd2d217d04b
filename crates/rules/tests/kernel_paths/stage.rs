//! A node whose portal the kernel serves, with pods here and elsewhere behind it, and
//! somebody in the agent's place.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Lab, Namespace, Node, Place, Pod, Serve, Server};
use edgemesh_rules::{Family, KernelEndpoint, KernelPath, PortalRule, Ruleset, Sharing};

use crate::on_node::Answering;

/// Where pods listen.
pub(crate) const PORT: u16 = 8080;
const PORTAL: &str = "default/web";

/// The stage: `client`, `here` and `also-here` are pods of the node, `there` and `far` of another one.
pub(crate) struct Stage {
    pub(crate) family: Family,
    pub(crate) node: Node,
    pub(crate) other_node: Node,
    pub(crate) client: Pod,
    pub(crate) here: Pod,
    pub(crate) also_here: Pod,
    pub(crate) there: Pod,
    pub(crate) far: Pod,
    agent: Answering,
    /// A datagram's port that nobody used yet: a flow of the same port would lead to where that
    /// one did.
    next_port: AtomicU16,
    _servers: Vec<Server>,
}

impl Stage {
    pub(crate) fn set(lab: &Lab, family: Family) -> Result<Self> {
        let name = |name: &str| match family {
            Family::V4 => name.to_owned(),
            Family::V6 => format!("{name}-6"),
        };
        let node = lab.node(&name("edge-1")).create()?;
        let other_node = lab.node(&name("edge-2")).create()?;
        let pod = |node: &Node, pod| node.pod(&name(pod)).create();
        let [client, here, also_here] = [
            pod(&node, "client")?,
            pod(&node, "here")?,
            pod(&node, "also-here")?,
        ];
        let [there, far] = [pod(&other_node, "there")?, pod(&other_node, "far")?];
        let mut servers = Vec::new();
        for pod in [&here, &also_here, &there] {
            servers.push(pod.serve(PORT, Serve::Identity)?);
            servers.push(pod.serve(PORT, Serve::UdpIdentity)?);
        }
        let stage = Self {
            family,
            agent: Answering::on_intercept_address(&node, family)?,
            // Below those that the kernel gives away.
            next_port: AtomicU16::new(10_000),
            node,
            other_node,
            client,
            here,
            also_here,
            there,
            far,
            _servers: servers,
        };
        stage.await_links()?;
        Ok(stage)
    }

    /// A link that was made just now may lose its first packets.
    fn await_links(&self) -> Result<()> {
        for pod in [&self.here, &self.also_here, &self.there] {
            let to = self.endpoint(pod).address;
            self.client.ask(to, "hello")?;
            self.client.ask_udp(to, "hello")?;
            self.node.ask(to, "hello")?;
            self.far.ask(to, "hello")?;
        }
        Ok(())
    }

    /// The portal.
    pub(crate) fn portal(&self) -> SocketAddr {
        self.agent.portal(PORTAL)
    }

    /// The pod as an endpoint.
    pub(crate) fn endpoint(&self, pod: &Pod) -> KernelEndpoint {
        KernelEndpoint {
            address: SocketAddr::new(self.address(pod), PORT),
            is_pod_here: pod.node_name() == self.node.name(),
        }
    }

    /// The pod's address.
    pub(crate) fn address(&self, pod: &Pod) -> IpAddr {
        match (self.family, pod.ipv6()) {
            (Family::V6, Some(v6)) => v6.into(),
            (Family::V4, _) | (Family::V6, None) => pod.ipv4().into(),
        }
    }

    /// The portal, over TCP and UDP, leads to these pods and to the agent's part.
    pub(crate) fn rules(&self, pods: &[&Pod], sharing: Sharing) -> Result<Arc<Ruleset>> {
        self.rules_with(|rules| rules, pods, sharing)
    }

    /// The same, on a node whose pods have the addresses that they have.
    pub(crate) fn rules_with_pods(&self, pods: &[&Pod], sharing: Sharing) -> Result<Arc<Ruleset>> {
        let ranges = [self.node.pod_range_v4(), self.node.pod_range_v6()];
        let ranges = [ranges[0].parse()?, ranges[1].parse()?];
        self.rules_with(|rules| rules.with_pods(ranges), pods, sharing)
    }

    fn rules_with(
        &self,
        alter: impl FnOnce(Ruleset) -> Ruleset,
        pods: &[&Pod],
        sharing: Sharing,
    ) -> Result<Arc<Ruleset>> {
        let to_the_agent = self.agent.rules(&[PORTAL])?;
        let mut rules = alter(Ruleset::clone(&to_the_agent));
        for (frontend, rule) in to_the_agent.portals() {
            let endpoints = pods.iter().map(|pod| self.endpoint(pod));
            let rule = PortalRule {
                kernel: KernelPath::new(endpoints, sharing).map(Box::new),
                ..rule.clone()
            };
            rules.insert(*frontend, rule)?;
        }
        Ok(Arc::new(rules))
    }

    /// How often who answered so many connections from there.
    pub(crate) fn answers(
        &self,
        place: &Namespace,
        protocol: Protocol,
        times: usize,
    ) -> Result<BTreeMap<String, usize>> {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            let who = match protocol {
                Protocol::Udp => self.udp_asked_from(place)?,
                Protocol::Tcp | Protocol::Sctp => self.agent.asked_from(place, PORTAL)?,
            };
            *answers.entry(who).or_default() += 1;
        }
        Ok(answers)
    }

    fn udp_asked_from(&self, place: &Namespace) -> Result<String> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let any: IpAddr = match self.family {
            Family::V4 => [0; 4].into(),
            Family::V6 => [0; 16].into(),
        };
        let to = self.portal();
        let answer = place.run(|| -> std::io::Result<String> {
            let socket = UdpSocket::bind((any, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })??;
        let name = answer.split(" saw ").next().unwrap_or_default();
        Ok(name.to_owned())
    }

    /// The one who answers all of some connections from there.
    pub(crate) fn only_answer(&self, place: &Namespace, protocol: Protocol) -> Result<String> {
        let answers = self.answers(place, protocol, 12)?;
        let (who, _) = answers.first_key_value().context("nobody")?;
        anyhow::ensure!(answers.len() == 1, "{answers:?}");
        Ok(who.clone())
    }

    /// Whom the endpoint sees as its client, over TCP and over UDP.
    pub(crate) fn seen_client(&self, place: &impl Place) -> Result<IpAddr> {
        let tcp = place.ask(self.portal(), "hello")?.client.ip();
        let udp = place.ask_udp(self.portal(), "hello")?.client.ip();
        anyhow::ensure!(tcp == udp, "{tcp} by TCP, {udp} by UDP");
        Ok(tcp)
    }
}

/// A socket whose datagrams are one flow.
pub(crate) fn flow(place: &impl Place, to: SocketAddr) -> Result<UdpSocket> {
    Ok(place.udp_socket(to)?)
}

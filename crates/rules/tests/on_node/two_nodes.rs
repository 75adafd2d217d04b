//! Two nodes whose pods reach each other, for portals that the kernel serves by iptables.

#![allow(dead_code, reason = "each lab uses a part of it")]

use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Flavour, Lab, Node, Place, Pod, PodNetwork, Serve, Server};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Backend, Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing,
};

use crate::on_node::{backend, cluster_ip, intercept, nat, on_node};

pub(crate) const AGENTS_PORT: u16 = 20007;
pub(crate) const ENDPOINT_PORT: u16 = 8080;
pub(crate) const HOUR: Sharing = Sharing::Sticky(Duration::from_secs(3600));

/// Two nodes whose pods reach each other; ours is the first.
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) other: Node,
    pub(crate) client: Pod,
    pub(crate) here: Pod,
    pub(crate) far: Pod,
    _servers: Vec<Server>,
}

impl Stage {
    pub(crate) fn set(lab: &Lab) -> Result<Self> {
        // On one bridge, answers among the node's pods would pass by connection tracking.
        let node = lab
            .node("edge-1")
            .with_pods_wired(PodNetwork::Calico)
            .create()?;
        let other = lab
            .node("edge-2")
            .with_pods_wired(PodNetwork::Calico)
            .create()?;
        let client = node.pod("client").create()?;
        let here = node.pod("here").create()?;
        let far = other.pod("far").create()?;
        let mut servers = Vec::new();
        for pod in [&here, &far] {
            servers.push(pod.serve(ENDPOINT_PORT, Serve::Identity)?);
            servers.push(pod.serve(ENDPOINT_PORT, Serve::UdpIdentity)?);
        }
        servers.push(node.serve(ENDPOINT_PORT, Serve::Identity)?);
        Ok(Self {
            node,
            other,
            client,
            here,
            far,
            _servers: servers,
        })
    }

    pub(crate) fn pods(&self, family: Family) -> Result<ipnet::IpNet> {
        Ok(match family {
            Family::V4 => self.node.pod_range_v4(),
            Family::V6 => self.node.pod_range_v6(),
        }
        .parse()?)
    }

    pub(crate) fn nothing(&self, family: Family) -> Result<Ruleset> {
        let rules = Ruleset::new(intercept(family), 20008, Mark::AGENT);
        Ok(rules.with_pods([self.pods(family)?]))
    }

    /// Rules for one portal of each protocol, number 1, that lead to these pods.
    pub(crate) fn leading_to(
        &self,
        family: Family,
        pods: &[&Pod],
        sharing: Sharing,
    ) -> Result<Arc<Ruleset>> {
        let mut endpoints = Vec::new();
        for pod in pods {
            endpoints.push(KernelEndpoint {
                address: (address(&pod.addresses(), family)?, ENDPOINT_PORT).into(),
                is_pod_here: pod.node_name() == self.node.name(),
            });
        }
        let mut rules = self.nothing(family)?;
        serve(&mut rules, 1, endpoints, sharing)?;
        Ok(Arc::new(rules))
    }

    pub(crate) fn nodes_address(&self, family: Family) -> Result<IpAddr> {
        match family {
            Family::V4 => Ok(self.node.ipv4().into()),
            Family::V6 => Ok(self.node.ipv6().context("no IPv6")?.into()),
        }
    }
}

pub(crate) fn serve(
    rules: &mut Ruleset,
    number: u16,
    endpoints: Vec<KernelEndpoint>,
    sharing: Sharing,
) -> Result<()> {
    let kernel = KernelPath::new(endpoints, sharing).map(Box::new);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rule = PortalRule {
            comment: RuleComment::new(&format!("default/s-{number}:http")),
            to_port: AGENTS_PORT,
            kernel: kernel.clone(),
        };
        let portal = portal(rules.family(), number);
        let frontend = Frontend {
            ip: portal.ip(),
            protocol,
            port: portal.port(),
        };
        rules.insert(frontend, rule)?;
    }
    Ok(())
}

pub(crate) fn portal(family: Family, number: u16) -> SocketAddr {
    (cluster_ip(family, number), 80).into()
}

pub(crate) fn address(of: &[IpAddr], family: Family) -> Result<IpAddr> {
    let same = |ip: &&IpAddr| Family::of(**ip) == family;
    of.iter().find(same).copied().context("no such address")
}

/// Who answers at `to`, pods and the agent alike.
pub(crate) fn who(place: &impl Place, to: SocketAddr) -> Result<String> {
    let mut stream = place.connect(to)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        bail!("no answer from {to}");
    }
    Ok(answer.split(" saw ").next().unwrap_or_default().to_owned())
}

/// Whose address the server sees that answers at `to`, over TCP and over UDP.
pub(crate) fn seen(place: &impl Place, to: SocketAddr) -> Result<[IpAddr; 2]> {
    Ok([
        place.ask(to, "?")?.client.ip(),
        place.ask_udp(to, "?")?.client.ip(),
    ])
}

/// Runs a test for each family, with a backend that is there already.
pub(crate) fn in_each_family(
    stage: &Stage,
    flavour: Flavour,
    body: impl AsyncFn(Family, &mut Backend) -> Result<()> + Sync,
) -> Result<()> {
    on_node(&stage.node, async || -> Result<()> {
        for family in Family::BOTH {
            let mut backend = backend(family, flavour).await?;
            body(family, &mut backend)
                .await
                .with_context(|| format!("{family} {flavour}"))?;
            backend.remove().await?;
            let left = nat(&stage.node, flavour, family)?;
            assert!(!left.contains("EDGEMESH"), "{left}");
        }
        Ok(())
    })?
}

//! What a running agent says of itself.

use std::fmt;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{Family, Flavour, Node};
use serde_json::Value;

use crate::agent::AgentSetup;
use crate::cluster::Cluster;

/// How the agent's rules go into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Chains in iptables of a flavour.
    Iptables(Flavour),
    /// A table of its own.
    Nftables,
}

impl Way {
    /// As the agent calls it.
    fn name(self, family: Family) -> String {
        match self {
            Self::Iptables(flavour) => flavour.tool(family, ""),
            Self::Nftables => "nftables".to_owned(),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name(Family::V4))
    }
}

/// The answer of `edgemesh-agent status`.
#[derive(Debug)]
pub(crate) struct Status(Value);

impl Status {
    /// Asks the agent of the node.
    pub(crate) fn of(cluster: &Cluster) -> Result<Self> {
        Self::ask(&cluster.agent, &cluster.node)
    }

    /// Asks the agent of this node.
    pub(crate) fn ask(agent: &AgentSetup, node: &Node) -> Result<Self> {
        let printed = agent.status(node).run()?;
        let answer = serde_json::from_str(&printed);
        answer
            .map(Self)
            .with_context(|| format!("status printed {printed}"))
    }

    /// Fails unless the rules of these families go into the kernel this way.
    pub(crate) fn goes_by(&self, way: Way, families: &[Family]) -> Result<()> {
        for family in families {
            let wanted = way.name(*family);
            let name = match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            let report = self.0["families"]
                .as_array()
                .and_then(|all| all.iter().find(|report| report["family"] == name))
                .with_context(|| format!("no report of {name}"))?;
            ensure!(
                report["backend"] == wanted,
                "{name} goes by {}, not by {wanted}: {}",
                report["backend"],
                report["reason"]
            );
        }
        Ok(())
    }

    /// Connections taken and UDP flows opened, since its start.
    pub(crate) fn caught(&self) -> Result<u64> {
        let figure = |part: &str, name: &str| {
            let value = self.0[part][name].as_u64();
            value.with_context(|| format!("no figure {part}.{name}"))
        };
        Ok(figure("tcp", "accepted")? + figure("udp", "opened")?)
    }

    /// This node's public key for the tunnel.
    pub(crate) fn public_key(&self) -> Result<&str> {
        self.tunnel()["public_key"].as_str().context("no key")
    }

    /// How many nodes are believed to be who they say.
    pub(crate) fn believed(&self) -> Result<u64> {
        self.tunnel()["believed"].as_u64().context("no tunnel")
    }

    /// `way` and `by` of a peer: which path its packets take now.
    pub(crate) fn path_to(&self, peer: &str) -> Result<(&str, &str)> {
        let peer = self.of_node("peers", peer)?;
        let word = |name: &str| peer[name].as_str().unwrap_or_default();
        Ok((word("way"), word("by")))
    }

    /// `reason` and `why` of a MeshNode that is not believed.
    pub(crate) fn refusal_of(&self, node: &str) -> Result<(&str, &str)> {
        let refused = self.of_node("refused", node)?;
        let word = |name: &str| refused[name].as_str().unwrap_or_default();
        Ok((word("reason"), word("why")))
    }

    fn of_node(&self, list: &str, node: &str) -> Result<&Value> {
        let all = self.tunnel()[list].as_array().context("no tunnel")?;
        let found = all.iter().find(|entry| entry["node"] == node);
        found.with_context(|| format!("{node} is not among the {list}: {all:?}"))
    }

    fn tunnel(&self) -> &Value {
        &self.0["tunnel"]
    }
}

//! An agent and a kube-proxy side by side on one node, each with an endpoint of its own:
//! who answers a request tells who handled it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::Agent;
use crate::client::{Answer, Place};
use crate::iptables::{Family, Flavour, Table};
use crate::kube_proxy::{KubeProxy, KubeProxyMode};
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::Pod;
use crate::promises;
use crate::rule_list::RuleList;
use crate::serve::{Serve, Server};
use crate::service::ClusterService;

/// Who handled a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// The agent: its endpoint answered.
    Agent,
    /// kube-proxy: its endpoint answered.
    KubeProxy,
}

/// A node with a client pod, an agent and a stand-in kube-proxy. Both know the same
/// Services; but the agent's endpoints are in one pod, kube-proxy's in another.
#[derive(Debug)]
pub struct SideBySide {
    /// The node.
    pub node: Node,
    /// A pod without servers.
    pub client: Pod,
    /// The agent, not started.
    pub agent: Agent,
    /// The endpoint that only the agent knows.
    pub agents_pod: Pod,
    /// The endpoint that only kube-proxy knows.
    pub kube_proxys_pod: Pod,
    flavour: Flavour,
    kube_proxy: Option<KubeProxy>,
    services: Vec<ClusterService>,
    servers: Vec<Server>,
}

impl SideBySide {
    /// Sets the stage on `node`; neither agent nor kube-proxy runs, no Service is known.
    ///
    /// # Errors
    ///
    /// When the node has an agent or pods of these names already.
    pub fn on(
        lab: &Lab,
        node: Node,
        flavour: Flavour,
        executable: impl AsRef<Path>,
    ) -> Result<Self> {
        let agent = Agent::prepare(lab, &node, executable)?;
        let stage = Self {
            client: node.pod("client").create()?,
            agents_pod: node.pod("agents-pod").create()?,
            kube_proxys_pod: node.pod("kube-proxys-pod").create()?,
            agent,
            flavour,
            kube_proxy: None,
            services: Vec::new(),
            servers: Vec::new(),
            node,
        };
        Ok(stage)
    }

    /// Starts the same server in both endpoint pods.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn serve(&mut self, port: u16, kind: Serve) -> Result<()> {
        for pod in [&self.agents_pod, &self.kube_proxys_pod] {
            self.servers.push(pod.serve(port, kind)?);
        }
        Ok(())
    }

    /// Makes these the Services of the cluster, each with its two endpoints; endpoints
    /// given in `services` are ignored.
    ///
    /// # Errors
    ///
    /// The file system's and, while kube-proxy runs, those of iptables.
    pub fn publish(&mut self, services: &[ClusterService]) -> Result<()> {
        self.services = services.to_vec();
        self.agent
            .publish(&with_endpoint(services, &self.agents_pod))?;
        match &mut self.kube_proxy {
            Some(proxy) => proxy.sync(&with_endpoint(services, &self.kube_proxys_pod)),
            None => Ok(()),
        }
    }

    /// Starts kube-proxy, in iptables mode with the flavour of this stage.
    ///
    /// # Errors
    ///
    /// Those of iptables.
    pub fn start_kube_proxy(&mut self) -> Result<()> {
        self.start_kube_proxy_in(self.flavour.into())
    }

    /// Starts kube-proxy in a mode.
    ///
    /// # Errors
    ///
    /// Those of iptables or nft.
    pub fn start_kube_proxy_in(&mut self, mode: KubeProxyMode) -> Result<()> {
        let services = with_endpoint(&self.services, &self.kube_proxys_pod);
        self.kube_proxy = Some(KubeProxy::start(&self.node, mode, &services)?);
        Ok(())
    }

    /// Restarts kube-proxy, which then puts what it misses of its own in place.
    ///
    /// # Errors
    ///
    /// When it was never started; those of iptables.
    pub fn restart_kube_proxy(&self) -> Result<()> {
        self.kube_proxy
            .as_ref()
            .context("kube-proxy was never started")?
            .restart()
    }

    /// Who handles a TCP request from `place` to an [`Serve::Identity`] server.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn handler(&self, place: &impl Place, to: &str) -> Result<Handler> {
        self.handler_behind(&place.ask(to, "who are you?")?)
    }

    /// Who handles a datagram from `place` to an [`Serve::UdpIdentity`] server.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn udp_handler(&self, place: &impl Place, to: &str) -> Result<Handler> {
        self.handler_behind(&place.ask_udp(to, "who are you?")?)
    }

    /// Checks that TCP requests to `to`, from the client pod and from the host, are handled
    /// by `expected`.
    ///
    /// # Errors
    ///
    /// When nobody answers, or the other one does.
    pub fn check_handled_by(&self, expected: Handler, to: &str) -> Result<()> {
        let (pod, host) = (
            self.handler(&self.client, to)?,
            self.handler(&self.node, to)?,
        );
        check_both(expected, to, pod, host)
    }

    /// As [`Self::check_handled_by`], for datagrams.
    ///
    /// # Errors
    ///
    /// When nobody answers, or the other one does.
    pub fn check_udp_handled_by(&self, expected: Handler, to: &str) -> Result<()> {
        let pod = self.udp_handler(&self.client, to)?;
        let host = self.udp_handler(&self.node, to)?;
        check_both(expected, to, pod, host)
    }

    /// The nat table of one family, in the flavour of this stage.
    ///
    /// # Errors
    ///
    /// Those of iptables-save.
    pub fn nat(&self, family: Family) -> Result<RuleList> {
        RuleList::read(&self.node, self.flavour, family, Table::Nat)
    }

    /// See [`promises::check_precedence`].
    ///
    /// # Errors
    ///
    /// When something is otherwise: says what.
    pub fn check_precedence(&self, portals: &[&str]) -> Result<()> {
        promises::check_precedence(&self.node, self.flavour, portals)
    }

    /// See [`promises::foreign_rules`].
    ///
    /// # Errors
    ///
    /// Those of iptables-save.
    pub fn foreign_rules(&self) -> Result<String> {
        promises::foreign_rules(&self.node, self.flavour)
    }

    /// See [`promises::check_nothing_left`].
    ///
    /// # Errors
    ///
    /// When something is: says what.
    pub fn check_nothing_left(&self) -> Result<()> {
        promises::check_nothing_left(&self.node)
    }

    /// Runs an `ip` command given as words, e.g. `route get 10.96.10.1`, on the node.
    ///
    /// # Errors
    ///
    /// Those of ip.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.node.program("ip").args(words.split_whitespace()).run()
    }

    /// Runs an iptables command given as words, e.g. `-t nat -F`, in the flavour of this
    /// stage, and returns what it prints.
    ///
    /// # Errors
    ///
    /// Those of iptables.
    pub fn iptables(&self, family: Family, words: &str) -> Result<String> {
        self.flavour
            .command(&self.node, family, words.split_whitespace())
    }

    fn handler_behind(&self, answer: &Answer) -> Result<Handler> {
        let pods = [
            (&self.agents_pod, Handler::Agent),
            (&self.kube_proxys_pod, Handler::KubeProxy),
        ];
        match pods.iter().find(|(pod, _)| pod.name() == answer.server) {
            Some((_, handler)) => Ok(*handler),
            None => bail!("{} answered, an endpoint of neither", answer.server),
        }
    }
}

fn check_both(expected: Handler, to: &str, pod: Handler, host: Handler) -> Result<()> {
    ensure!(
        pod == expected,
        "{pod:?} handles {to} for the pod, not {expected:?}"
    );
    ensure!(
        host == expected,
        "{host:?} handles {to} for the host, not {expected:?}"
    );
    Ok(())
}

fn with_endpoint(services: &[ClusterService], pod: &Pod) -> Vec<ClusterService> {
    services
        .iter()
        .map(|service| service.clone().without_endpoints().endpoint(pod))
        .collect()
}

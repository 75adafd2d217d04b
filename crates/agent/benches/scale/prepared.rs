//! How who is measured is started, and told of a Service.

use std::path::Path;

use anyhow::{Context, Result};
use edgemesh_lab::{
    Agent, Background, ClusterService, Flavour, Lab, Node, Place, Program, leave_kubelets_signs,
    manifests,
};

use crate::cluster::{Cluster, Kubernetes};
use crate::contender::Contender;
use crate::kube_proxy::{KubeProxySetup, Mode};

/// A contender on its node, ready to be started.
#[derive(Debug)]
pub(crate) enum Prepared<'c> {
    /// The agent with its files.
    AgentOfManifests(Box<Agent>),
    /// The agent.
    AgentOfApi {
        /// How it is started.
        program: Program,
        /// What it reads from.
        source: &'c Kubernetes,
    },
    /// kube-proxy.
    KubeProxy {
        /// How it is started.
        setup: KubeProxySetup,
        /// What it reads from.
        source: &'c Kubernetes,
    },
}

impl<'c> Prepared<'c> {
    /// Gets everything ready that is not to be measured.
    pub(crate) fn new(
        contender: Contender,
        lab: &Lab,
        node: &Node,
        flavour: Flavour,
        cluster: &'c Cluster,
        count: usize,
    ) -> Result<Self> {
        leave_kubelets_signs(node, flavour)?;
        let kubernetes = || cluster.kubernetes.as_ref().context("no control plane");
        Ok(match contender {
            Contender::AgentOfManifests => {
                let agent = Agent::prepare(lab, node, &cluster.agent)?;
                let services: Vec<_> = cluster.services(count).collect();
                agent.publish(&services)?;
                Self::AgentOfManifests(Box::new(agent))
            }
            Contender::AgentOfApi => {
                let source = kubernetes()?;
                source.get_ready(node, &cluster.added())?;
                Self::AgentOfApi {
                    program: agent_of_api(lab, node, &cluster.agent, source)?,
                    source,
                }
            }
            Contender::KubeProxy => {
                let source = kubernetes()?;
                source.get_ready(node, &cluster.added())?;
                let folder = lab.new_folder(&format!("kube-proxy-on-{}", node.name()))?;
                let kubeconfig = source.kubeconfig.clone();
                Self::KubeProxy {
                    setup: KubeProxySetup::new(&source.programs, &folder, flavour, kubeconfig)?,
                    source,
                }
            }
        })
    }

    /// Starts it.
    pub(crate) fn start(&self, node: &Node, log: &Path) -> Result<Background> {
        match self {
            Self::AgentOfManifests(agent) => agent.run_command().start(log),
            Self::AgentOfApi { program, .. } => program.start(log),
            Self::KubeProxy { setup, .. } => setup
                .run(node, Mode::Iptables)
                // The defaults of kube-proxy instead of the end-to-end test's.
                .args([
                    "--iptables-sync-period=30s",
                    "--iptables-min-sync-period=1s",
                ])
                .start(log),
        }
    }

    /// Adds a Service to what it reads.
    pub(crate) fn add(&self, service: &ClusterService) -> Result<()> {
        match self {
            Self::AgentOfManifests(agent) => manifests::put(
                &agent.manifests_folder(),
                &format!("default.{}.yaml", service.name),
                &manifests::documents(service),
            ),
            Self::AgentOfApi { source, .. } | Self::KubeProxy { source, .. } => {
                source.objects.create_service(service)
            }
        }
    }

    /// Takes away what was added, for the next one.
    pub(crate) fn take_away(&self, services: &[ClusterService]) -> Result<()> {
        match self {
            Self::AgentOfManifests(_) => Ok(()),
            Self::AgentOfApi { source, .. } | Self::KubeProxy { source, .. } => {
                source.objects.delete_services(services)
            }
        }
    }
}

fn agent_of_api(lab: &Lab, node: &Node, agent: &Path, source: &Kubernetes) -> Result<Program> {
    let folder = lab.new_folder(&format!("agent-on-{}", node.name()))?;
    let config = folder.join("config.yaml");
    let text = format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
         kind: EdgeMeshAgent\n\
         kubeAPIConfig:\n  kubeConfig: {}\n\
         modules:\n  edgeProxy:\n    enable: true\n",
        source.kubeconfig.display()
    );
    std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    Ok(node
        .program(agent)
        .args(["run", "--node-name", node.name(), "--config"])
        .arg(config)
        .arg("--state-dir")
        .arg(folder.join("state")))
}

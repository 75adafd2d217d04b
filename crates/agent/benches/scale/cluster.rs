//! What all runs share: the pods that answer and, where its programs are at hand, a
//! control plane with the objects.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgemesh_lab::{ClusterService, Lab, Node, Place, Pod, Serve, Server};

use crate::bulk_objects::BulkObjects;
use crate::control_plane::ControlPlane;
use crate::programs::Programs;
use crate::report::Report;
use crate::services::{self, ADDED, TARGET};

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The agent's program.
    pub(crate) agent: PathBuf,
    /// What answers for some of the Services.
    pub(crate) servers: [Pod; 2],
    /// The control plane, where there is one.
    pub(crate) kubernetes: Option<Kubernetes>,
    _node: Node,
    _listening: Vec<Server>,
}

/// A control plane and what is in it.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    /// The real programs.
    pub(crate) programs: Programs,
    /// For whoever reads the objects.
    pub(crate) kubeconfig: PathBuf,
    /// For changing them.
    pub(crate) objects: BulkObjects,
    published: usize,
    control_plane: ControlPlane,
}

impl Cluster {
    /// Starts what there is to start.
    pub(crate) fn start(lab: &Lab, agent: &Path, report: &mut Report) -> Result<Self> {
        let node = lab.node("servers").create()?;
        let servers = [node.pod("web-1").create()?, node.pod("web-2").create()?];
        let mut listening = Vec::new();
        for pod in &servers {
            listening.push(pod.serve(TARGET, Serve::Identity)?);
        }
        let kubernetes = if env::var_os("K8S_BIN").is_some() {
            Some(Kubernetes::start(lab, &node, &servers, report)?)
        } else {
            report.remark("K8S_BIN is not set: the agent is measured alone".to_owned());
            None
        };
        Ok(Self {
            agent: agent.to_owned(),
            servers,
            kubernetes,
            _node: node,
            _listening: listening,
        })
    }

    pub(crate) fn has_control_plane(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// Makes sure that the API server has that many Services. The number only grows.
    pub(crate) fn publish(&mut self, count: usize) -> Result<()> {
        match &mut self.kubernetes {
            Some(kubernetes) => kubernetes.publish(count),
            None => Ok(()),
        }
    }

    /// The Services of a run: as many as `count`, the answering one included.
    pub(crate) fn services(&self, count: usize) -> impl Iterator<Item = ClusterService> {
        let answering = services::answering(&self.servers);
        (1..count)
            .map(services::bulk)
            .chain(std::iter::once(answering))
    }

    /// The Services that a run adds.
    pub(crate) fn added(&self) -> [ClusterService; ADDED] {
        std::array::from_fn(|index| services::added(index, &self.servers))
    }
}

impl Kubernetes {
    fn start(lab: &Lab, node: &Node, servers: &[Pod; 2], report: &mut Report) -> Result<Self> {
        let programs = Programs::find()?;
        report.version(format!("Kubernetes 1.{}", programs.minor));
        let logs = lab.new_folder("control-plane-logs")?;
        let control_plane = ControlPlane::start(lab, &programs, &logs)
            .context("the control plane for kube-proxy")?;
        let kubeconfig = control_plane.kubeconfig()?;
        // discovery.k8s.io/v1 came with 1.21.
        let objects = BulkObjects::new(node.namespace(), kubeconfig.clone(), programs.minor >= 21);
        objects.create(std::iter::once(services::answering(servers)))?;
        Ok(Self {
            programs,
            kubeconfig,
            objects,
            published: 1,
            control_plane,
        })
    }

    /// Gets ready for a run on `node`: kube-proxy waits for its own to be registered. The
    /// endpoints of what will be `added` are there first, so that only the Service is new;
    /// the API server removed those of the last run with their Services.
    pub(crate) fn get_ready(&self, node: &Node, added: &[ClusterService]) -> Result<()> {
        self.control_plane.api()?.apply_node(node)?;
        self.objects.create_endpoints(added)
    }

    fn publish(&mut self, count: usize) -> Result<()> {
        self.objects
            .create((self.published..count).map(services::bulk))?;
        self.published = self.published.max(count);
        Ok(())
    }
}

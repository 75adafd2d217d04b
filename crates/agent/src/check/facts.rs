//! What was found on a host, before anything is made of it.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use edgemesh_plan::{DatapathMode, HostFacts};
use edgemesh_rules::{BackendChoice, Family, ToolFound};
use edgemesh_watch::Reached;

use super::kube_proxy::Signs;
use super::tunnel_facts::TunnelFacts;

/// All that was found.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The node's kernel, `uname -r`.
    pub(super) kernel: String,
    /// Capabilities that are lacking, with what they are needed for; none where that can't be
    /// told.
    pub(super) lacking: Option<Vec<(&'static str, &'static str)>>,
    /// Programs.
    pub(super) tools: Vec<ToolFound>,
    /// Tables of iptables-legacy that exist, per family.
    pub(super) legacy_tables: Vec<(Family, Vec<String>)>,
    /// Per family: how rules would be programmed, or why they can't.
    pub(super) families: Vec<(Family, Result<BackendChoice, String>)>,
    /// Kernel modules for iptables' rules that are neither built in nor installed; none where
    /// that can't be told.
    pub(super) missing_modules: Option<Vec<&'static str>>,
    /// Connections tracked now, and how many may be.
    pub(super) conntrack: Option<(u64, u64)>,
    /// Who may take connections to endpoints, by the configuration.
    pub(super) datapath: DatapathMode,
    /// What the host's settings allow the kernel to do about that.
    pub(super) host: HostFacts,
    /// By what kube-proxy can be recognised.
    pub(super) kube_proxy: Signs,
    /// What could not be read of the rules.
    pub(super) rule_problems: Vec<String>,
    /// Others that do NAT or replace it.
    pub(super) others: Others,
    /// The addresses that the agent would take, each with the devices that have it already.
    pub(super) intercepts: Vec<(IpAddr, Vec<String>)>,
    /// Ports that the agent would take.
    pub(super) ports: Vec<PortFact>,
    /// The time.
    pub(super) now: SystemTime,
    /// Files that may be open: now, and at most.
    pub(super) file_limit: Option<(u64, u64)>,
    /// Whether a configuration was given; without one everything is at its default.
    pub(super) is_configured: bool,
    /// Where the catalog would come from.
    pub(super) source: SourceFact,
    /// The tunnel; none where the configuration has it off.
    pub(super) tunnel: Option<TunnelFacts>,
    /// The agent that runs already.
    pub(super) agent: AgentFact,
}

/// Others who may take connections to Services before the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Others {
    /// Programs of Cilium's that translate when a socket connects, by the file they are
    /// pinned to.
    pub(super) cilium_socket_lb: Option<String>,
    /// Whether Cilium is on this node at all.
    pub(super) cilium: bool,
    /// NAT chains of Istio's in this network namespace.
    pub(super) istio_chains: Vec<String>,
    /// NAT hooks of nf_tables that are asked before iptables'.
    pub(super) earlier_nat: Vec<String>,
    /// Whether the device of EdgeMesh's own agent is there.
    pub(super) edgemesh_device: bool,
}

/// A port that the agent would listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortFact {
    /// Where.
    pub(super) address: SocketAddr,
    /// What for.
    pub(super) what: PortUse,
    /// Whether somebody listens there.
    pub(super) taken: bool,
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortUse {
    /// `modules.edgeProxy.listenPort`: another one will do.
    Intercepted,
    /// `commonConfig.admin.address`: no other will do.
    Admin,
}

/// Where the catalog would come from.
#[derive(Clone, Debug)]
pub(super) enum SourceFact {
    /// An API server.
    Api(Result<Reached, String>),
    /// A folder of manifests: Services in it, and objects or files with mistakes.
    Manifests(Result<(usize, usize), String>),
}

/// The agent on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AgentFact {
    /// None answers.
    NotRunning,
    /// One is there, and something is wrong with asking it.
    NoAnswer(String),
    /// One answers.
    Runs {
        /// Its version.
        version: String,
        /// Why it is not ready; empty when it is.
        not_ready: Vec<String>,
    },
}

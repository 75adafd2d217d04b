//! How the running agent fares, as one value: what `edgemesh-agent status` shows.

mod collect;
mod own_process;
mod screen;
mod tunnel_screen;

pub(crate) use collect::Observer;
pub(crate) use screen::screen;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;
use crate::precedence_record::PrecedenceReport;
use crate::tunnel::TunnelReport;

/// As many endpoints that are left out are named one by one.
const MOST_NAMED: usize = 20;

/// The state of one agent at one moment; the form of `status --output json`. Fields may be
/// added, none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    /// Version of the agent.
    pub(crate) version: String,
    /// The node that it works for.
    pub(crate) node: String,
    /// Whether traffic may be sent through it (`/readyz`).
    pub(crate) ready: bool,
    /// What readiness depends on.
    pub(crate) conditions: Vec<ConditionReport>,
    /// The process itself.
    pub(crate) process: ProcessReport,
    /// Where the catalog comes from.
    pub(crate) source: SourceReport,
    /// The families that are intercepted, and how their rules fare.
    pub(crate) families: Vec<FamilyReport>,
    /// What becomes of service ports.
    pub(crate) services: ServicesReport,
    /// TCP through the agent.
    pub(crate) tcp: TcpReport,
    /// UDP through the agent.
    pub(crate) udp: UdpReport,
    /// Endpoints that failed and have not answered since.
    pub(crate) endpoints_left_out: LeftOutReport,
    /// The tunnel to other nodes; none where it is not enabled.
    #[serde(default)]
    pub(crate) tunnel: Option<TunnelReport>,
}

/// One of the things that must be true for readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConditionReport {
    /// `catalog`, `rules`, `listener` or `stopping`.
    pub(crate) name: String,
    /// Whether it is as it should be.
    pub(crate) ok: bool,
    /// Why not.
    pub(crate) why: Option<String>,
}

/// The agent's own process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessReport {
    /// Its id, as it sees itself.
    pub(crate) pid: u32,
    /// When it was started.
    pub(crate) started: Moment,
    /// Memory in use (RSS), in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// The most that it ever used, in bytes.
    pub(crate) memory_peak_bytes: Option<u64>,
    /// Files, sockets included, that are open.
    pub(crate) open_files: Option<u64>,
    /// How many may be open.
    pub(crate) open_files_limit: Option<u64>,
}

/// Where the catalog comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceReport {
    /// In words, for example "the Kubernetes API".
    pub(crate) origin: String,
    /// Whether it is whole.
    pub(crate) complete: bool,
    /// When it was saved, if it is the last good one from disk.
    pub(crate) saved: Option<Moment>,
    /// When the last change was taken in.
    pub(crate) last_change: Option<Moment>,
    /// Since when requests to the API server fail; none while none does.
    pub(crate) failing_since: Option<Moment>,
    /// Objects with something wrong in them, whose usable rest is used.
    pub(crate) bad_objects: usize,
    /// Manifest files with errors, of which older or partial content is in force.
    pub(crate) bad_files: usize,
    /// Services known.
    pub(crate) services: usize,
    /// Endpoint slices known.
    pub(crate) endpoint_slices: usize,
    /// Nodes known.
    pub(crate) nodes: usize,
}

/// One family's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FamilyReport {
    /// `IPv4` or `IPv6`.
    pub(crate) family: String,
    /// What they are programmed through, for example `iptables-nft`.
    pub(crate) backend: String,
    /// Why that one.
    pub(crate) reason: String,
    /// How well precedence is held.
    pub(crate) precedence: PrecedenceReport,
}

/// What becomes of service ports: portals (one per ClusterIP) by what is done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServicesReport {
    /// Service ports in all.
    pub(crate) ports: usize,
    /// Portals that are forwarded, in whatever way.
    pub(crate) forwarded: usize,
    /// Those of them that the kernel sends to endpoints.
    #[serde(default)]
    pub(crate) by_kernel: usize,
    /// Those that the kernel sends to some of their endpoints, and the agent to the others.
    #[serde(default)]
    pub(crate) by_kernel_and_agent: usize,
    /// Those that are in user mode, by reason.
    #[serde(default)]
    pub(crate) user_mode: BTreeMap<String, usize>,
    /// Portals that are refused, by reason.
    pub(crate) refused: BTreeMap<String, usize>,
    /// Service ports and portals that are left alone, by reason.
    pub(crate) left_alone: BTreeMap<String, usize>,
    /// Portals left to kube-proxy because they cannot be served now.
    pub(crate) failed: usize,
}

/// TCP through the agent, since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcpReport {
    /// Connections being dialled or relayed now.
    pub(crate) active: u64,
    /// Connections waiting for a place below the limit now.
    pub(crate) waiting: u64,
    /// Connections accepted.
    pub(crate) accepted: u64,
    /// Connections that were connected to an endpoint.
    pub(crate) relayed: u64,
    /// Connections refused, by reason; reasons that never occurred are left out.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Failed attempts to connect to an endpoint, by reason.
    pub(crate) dials_failed: BTreeMap<String, u64>,
}

/// UDP through the agent, since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UdpReport {
    /// Flows (client address and portal) now.
    pub(crate) active: u64,
    /// Flows opened.
    pub(crate) opened: u64,
    /// Datagrams dropped, by reason; reasons that never occurred are left out.
    pub(crate) dropped: BTreeMap<String, u64>,
}

/// Endpoints that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOutReport {
    /// How many, counted once per portal.
    pub(crate) count: usize,
    /// The first twenty.
    pub(crate) first: Vec<LeftOutEndpoint>,
}

/// An endpoint that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOutEndpoint {
    /// Its service port, `namespace/name:port`.
    pub(crate) service_port: String,
    /// Its address and port.
    pub(crate) endpoint: String,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Seconds until it may be tried again.
    pub(crate) seconds_left: u64,
}

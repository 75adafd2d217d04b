//! What this node shall do about the catalog.
//!
//! [`plan()`] is a pure function: catalog, reachability and policy in, portals out; no
//! I/O, no clock, no async. Every decision about a Service is made here and carries its
//! reason, so that rules, logs, explanations and tests have one answer to share.

mod datapath;
mod endpoint_reasons;
mod exit;
mod filter;
mod host_facts;
mod own_pods;
mod plan;
mod policy;
mod portal;
mod reachability;
mod topology;

pub use datapath::{Datapath, DatapathMode, UserMode};
pub use endpoint_reasons::{EndpointReason, Unused, endpoint_reasons};
pub use exit::{Exits, NotExitable};
pub use host_facts::{BypassingNetwork, FamilyFacts, HostFacts};
pub use own_pods::OwnPods;
pub use plan::{Earlier, Plan, plan, plan_since};
pub use policy::{FilterMode, Policy};
pub use portal::{
    EndpointChoice, Frontend, LeftAlone, Portal, PortalEndpoint, Refusal, ServicePortPlan, Target,
};
pub use reachability::{Override, OverrideScope, Reachability, Way, WayReason};

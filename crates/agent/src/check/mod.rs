//! Can this host do it: what `edgemesh-agent check` shows.
//!
//! Probes ([`probe()`]) look, without changing anything, and give [`facts`]; [`findings()`]
//! makes of them what is said, which is pure.

mod agent_finding;
mod datapath_findings;
mod facts;
mod finding;
mod findings;
mod kube_proxy;
mod listeners;
mod probe;
mod screen;
mod tunnel_facts;
mod tunnel_findings;

pub(crate) use finding::Grade;
pub(crate) use findings::findings;
pub(crate) use probe::{Wanted, probe};
pub(crate) use screen::screen;

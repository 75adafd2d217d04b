//! Who handles a Service and why: what `edgemesh-agent explain` shows.
//!
//! The running agent tells what it planned ([`answer()`]); the command reads the kernel's
//! rules itself ([`Kernel`]), so that it says what is, not what should be, and works
//! without an agent too. [`report()`] puts both together.

mod answer;
mod datapath;
mod judge;
mod kernel;
mod own_table;
mod query;
mod report;
mod screen;
mod verdict;

pub(crate) use answer::{AgentAnswer, answer};
pub(crate) use kernel::{KUBE_PROXY_TABLE, Kernel};
pub(crate) use query::Query;
pub(crate) use report::{frontends, report};
pub(crate) use screen::screen;

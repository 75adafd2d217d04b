//! Who handles a Service and why: what `edgemesh-agent explain` shows.
//!
//! The running agent tells what it planned ([`answer()`]); the command reads the kernel's
//! rules itself, so that it says what is, not what should be, and works without an agent too.

mod answer;
mod query;

pub(crate) use answer::{AgentAnswer, answer};
pub(crate) use query::Query;

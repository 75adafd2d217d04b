//! What one run measures.

use std::time::Duration;

use edgemesh_bench::processes::Memory;

/// What was measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// From the start of the process until the first connection was answered.
    pub(crate) all_in: Duration,
    /// CPU time of the process and those it started, until all was in and they had ended.
    pub(crate) cpu_until_all_in: Duration,
    /// From the moment before a Service is written until it first answered.
    pub(crate) added: Vec<Duration>,
    /// CPU time per second while nothing happens.
    pub(crate) idle_cpu: Duration,
    /// Memory at the end of that.
    pub(crate) memory: Memory,
}

//! `edgemesh-agent crd`.

use std::process::ExitCode;

use super::output;

/// The CRDs that the agents of a cluster need.
const CRDS: &str = include_str!("../../../../deploy/crds/meshnodes.yaml");

/// Prints them, for `kubectl apply -f -`.
pub(super) fn execute() -> anyhow::Result<ExitCode> {
    output::print(CRDS)?;
    Ok(ExitCode::SUCCESS)
}

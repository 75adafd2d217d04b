//! How an agent is told which path to take.

use anyhow::Result;
use edgemesh_lab::Agent;

use super::{Backend, Datapath};

/// Starts an agent that has the key `datapath`, or, for the user path, one that knows no other.
///
/// # Errors
///
/// When it does not get ready.
pub fn start(agent: &mut Agent, datapath: Datapath, backend: Backend) -> Result<()> {
    let mut outcome = Ok(());
    for text in configurations(datapath, backend) {
        agent.configure(&text)?;
        outcome = agent.start();
        match &outcome {
            Ok(()) => return Ok(()),
            Err(error) if format!("{error:#}").contains("modules.edgeProxy.datapath") => {}
            Err(_) => break,
        }
    }
    outcome
}

/// What to configure an agent with, the best first: one from before the key `datapath` was
/// made knows the user path only.
#[must_use]
pub fn configurations(datapath: Datapath, backend: Backend) -> Vec<String> {
    let text = by_default(backend);
    match datapath {
        Datapath::Hybrid => vec![format!("{text}    datapath: hybrid\n")],
        Datapath::User => vec![format!("{text}    datapath: user\n"), text],
    }
}

/// Everything by default but the backend, and that it ends at once.
#[must_use]
pub fn by_default(backend: Backend) -> String {
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
         kind: EdgeMeshAgent\n\
         commonConfig:\n  terminationGracePeriod: 1s\n\
         modules:\n  edgeProxy:\n    enable: true\n    backend: {}\n",
        backend.name()
    )
}

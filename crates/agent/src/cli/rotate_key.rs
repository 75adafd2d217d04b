//! `edgemesh-agent rotate-key`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use edgemesh_tunnel::{NodeKey, Rotated};

use super::output;

/// Which node's key.
#[derive(Debug, Args)]
pub(super) struct RotateKeyArguments {
    /// Where the key is kept: the folder that the agent was started with
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgemesh")]
    state_dir: PathBuf,
}

/// Makes the key that the agent uses from its next start on.
pub(super) fn execute(arguments: &RotateKeyArguments) -> anyhow::Result<ExitCode> {
    output::print(&told(NodeKey::rotate(&arguments.state_dir)?))?;
    Ok(ExitCode::SUCCESS)
}

fn told(rotated: Rotated) -> String {
    let (done, current, next) = match rotated {
        Rotated::Made { current, next } => ("A new key was made for this node.", current, next),
        Rotated::AlreadyWaiting { current, next } => (
            "A new key is waiting already, which the agent has not used yet; it was left as it \
             is.",
            current,
            next,
        ),
    };
    format!(
        "{done}\n  in use  {current}\n  next    {next}\nIt is used from the agent's next start \
         on: restart the agent, or let another take over from it (run --take-over), which ends \
         no connection. Other nodes believe it, for the key in use has signed it; nothing has \
         to be changed in the cluster.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_and_what_is_to_be_done_is_told() {
        let state = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_create(state.path()).unwrap();
        let first = told(NodeKey::rotate(state.path()).unwrap());
        assert!(first.starts_with("A new key was made"), "{first}");
        assert!(first.contains(&key.public().to_string()), "{first}");
        assert!(first.contains("restart the agent"), "{first}");
        let second = told(NodeKey::rotate(state.path()).unwrap());
        assert!(
            second.starts_with("A new key is waiting already"),
            "{second}"
        );
        let next = NodeKey::load_or_create(state.path()).unwrap();
        assert!(second.contains(&next.public().to_string()), "{second}");
    }

    #[test]
    fn node_without_a_key_is_told_that_there_is_none() {
        let state = tempfile::tempdir().unwrap();
        let arguments = RotateKeyArguments {
            state_dir: state.path().to_owned(),
        };
        let error = execute(&arguments).unwrap_err().to_string();
        assert!(error.contains("tunnel.key"), "{error}");
    }
}

//! The command line: one file per command.

mod check;
mod cleanup;
mod crd;
mod explain;
mod output;
mod playground;
mod rotate_key;
mod run;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for a configuration or command line that cannot be used
/// (`EX_CONFIG`, sysexits.h).
const EXIT_CONFIG: u8 = 78;

/// Lets pods and hosts of a Kubernetes cluster reach every Service by its ClusterIP,
/// beside kube-proxy.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM.
    Run(run::RunArguments),
    /// Tell whether this host can do it, and what to do where it can't.
    Check(check::CheckArguments),
    /// Tell who handles a Service on this node, by which rule, and why.
    Explain(explain::ExplainArguments),
    /// Show how the agent that runs on this node fares.
    Status(status::StatusArguments),
    /// Show the main job on this machine, in private namespaces: no cluster, no root.
    Playground(playground::PlaygroundArguments),
    /// Remove everything that an agent can have left on this node.
    Cleanup(cleanup::CleanupArguments),
    /// Make a new key for this node's tunnel, used from the agent's next start on.
    RotateKey(rotate_key::RotateKeyArguments),
    /// Print the CRDs that the cluster needs, for `kubectl apply -f -`.
    Crd,
}

impl Arguments {
    /// Carries the command out. Errors are printed with all their causes.
    pub(crate) fn execute(self) -> ExitCode {
        let outcome = match self.command {
            Command::Run(arguments) => run::execute(&arguments),
            Command::Check(arguments) => check::execute(&arguments),
            Command::Explain(arguments) => explain::execute(&arguments),
            Command::Status(arguments) => status::execute(&arguments),
            Command::Playground(arguments) => playground::execute(&arguments),
            Command::Cleanup(arguments) => cleanup::execute(&arguments),
            Command::RotateKey(arguments) => rotate_key::execute(&arguments),
            Command::Crd => crd::execute(),
        };
        match outcome {
            Ok(code) => code,
            Err(error) => {
                print_error(&error);
                if error.is::<crate::config::ConfigErrors>() {
                    ExitCode::from(EXIT_CONFIG)
                } else {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a command goes to the terminal, whatever became of the log"
)]
fn print_error(error: &anyhow::Error) {
    eprintln!("edgemesh-agent: {error:#}");
}

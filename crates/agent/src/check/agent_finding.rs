//! What is said of the agent that runs here already. Pure.

use super::facts::AgentFact;
use super::finding::{Finding, ok, warning};

const TOPIC: &str = "agent";

/// The finding; `is_configured` tells whether the check was given a configuration.
pub(super) fn agent_finding(agent: &AgentFact, is_configured: bool) -> Finding {
    match agent {
        AgentFact::NotRunning => ok(TOPIC, "none runs here now"),
        AgentFact::NoAnswer(problem) => warning(TOPIC, problem, "see its log"),
        AgentFact::Runs { version, not_ready } if not_ready.is_empty() => {
            let said = format!("version {version} runs here and is ready");
            // Else an API server that this agent never asks would seem to be its trouble.
            match is_configured {
                true => ok(TOPIC, said),
                false => ok(
                    TOPIC,
                    said + "; what is said above is about one with everything at its default: \
                            give --config, --manifests and --state-dir as this one has them",
                ),
            }
        }
        AgentFact::Runs { version, not_ready } => warning(
            TOPIC,
            format!(
                "version {version} runs here, not ready: {}",
                not_ready.join("; ")
            ),
            "see `edgemesh-agent status` and its log",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_agent_with_a_configuration_that_was_not_given_it_is_said_that_this_is_not_about_it() {
        let ready = AgentFact::Runs {
            version: "1.0".to_owned(),
            not_ready: Vec::new(),
        };
        assert!(!agent_finding(&ready, true).says.contains("--config"));
        assert!(agent_finding(&ready, false).says.contains("--config"));
        let none = agent_finding(&AgentFact::NotRunning, false);
        assert!(!none.says.contains("--config"), "{none:?}");
    }
}

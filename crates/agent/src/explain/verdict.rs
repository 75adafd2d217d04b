//! What is said of a new connection: who handles it, and by what.

use serde::{Deserialize, Serialize};

use super::answer::Decision;
use super::datapath::TakenBy;

/// Who handles a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Handler {
    /// The agent.
    Edgemesh,
    /// kube-proxy.
    KubeProxy,
    /// Nobody: it is refused, or goes wherever the routing table sends the ClusterIP.
    Nobody,
}

/// Who handles a new connection from somewhere, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// `pods` (and others from outside the host) or `host`.
    pub(crate) from: String,
    /// Who.
    pub(crate) handler: Handler,
    /// What becomes of the connection, for example "forwarded to an endpoint".
    pub(crate) outcome: String,
    /// Where the deciding jumps stand.
    pub(crate) place: Option<String>,
    /// The rule that decides.
    pub(crate) rule: Option<RuleShown>,
    /// To whom that rule leads, where there are several.
    #[serde(default)]
    pub(crate) sends: Vec<Sends>,
    /// What is out of the ordinary.
    pub(crate) notes: Vec<String>,
}

/// Somebody to whom the kernel sends connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sends {
    /// An endpoint, or the agent.
    pub(crate) to: String,
    /// Whether it is the agent.
    pub(crate) is_agent: bool,
    /// Connections so far, of pods and of the host together; none where the kernel does not
    /// count them for each.
    pub(crate) connections: Option<u64>,
}

/// A rule as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuleShown {
    /// Its chain.
    pub(crate) chain: String,
    /// Its place there, counted from 1.
    pub(crate) place: usize,
    /// The map that the rule asks, where the portal is an element of one: nft's name of it.
    #[serde(default)]
    pub(crate) map: Option<String>,
    /// The command that shows it.
    pub(crate) command: String,
    /// Its text, or the element's.
    pub(crate) text: String,
    /// Connections (in the filter table: packets) that it took.
    pub(crate) packets: u64,
    /// Whether those of pods and of the host count together: an element's, and those of a rule in
    /// a chain that both come to.
    #[serde(default)]
    pub(crate) of_both: bool,
}

/// What is known of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agent {
    /// It does not answer.
    Silent,
    /// It answers; this is what it means to do, if it knows the portal.
    Runs(Option<Decision>),
}

impl Verdict {
    /// This one handles it, by a rule at this place.
    pub(super) fn by(
        handler: Handler,
        outcome: &str,
        place: String,
        rule: Option<RuleShown>,
    ) -> Self {
        Self {
            from: String::new(),
            handler,
            outcome: outcome.to_owned(),
            place: Some(place),
            rule,
            sends: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// No rule is there for it.
    pub(super) fn of_nobody() -> Self {
        Self {
            from: String::new(),
            handler: Handler::Nobody,
            outcome: "no rule is there for it: it goes where the routing table sends its address"
                .to_owned(),
            place: None,
            rule: None,
            sends: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Agent {
    /// What becomes of a connection that a rule of ours takes.
    pub(super) fn outcome(self, refused: bool, by: TakenBy) -> &'static str {
        match (by, self) {
            _ if refused => "refused at once",
            (TakenBy::Kernel, _) => "sent to an endpoint by the kernel",
            (TakenBy::KernelAndAgent, Agent::Runs(_)) => {
                "sent to an endpoint by the kernel, or forwarded to one by the agent"
            }
            (TakenBy::KernelAndAgent, Agent::Silent) => {
                "sent to an endpoint by the kernel, or refused: the agent that the other part leads \
                 to does not run"
            }
            (TakenBy::Agent, Agent::Runs(_)) => "forwarded to an endpoint",
            (TakenBy::Agent, Agent::Silent) => "refused: the agent that this leads to does not run",
        }
    }
}

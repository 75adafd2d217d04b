//! How the loop's work begins and ends beside other agents: taken over from one, left to
//! one, or taken back.

use std::sync::Arc;

use edgemesh_forward::Forwarder;
use edgemesh_rules::HostNetwork;

use super::{Round, Sync, SyncError};

/// What is there still when the rules are out.
pub(crate) struct Withdrawn {
    /// With the connections that are left.
    pub(crate) forwarder: Forwarder,
    /// The agent's addresses and routes.
    pub(crate) host: OnHost,
}

impl Sync {
    /// Puts the catalog, which is complete, in force while another agent's rules are: it
    /// changes nothing any more, and serves until these are in.
    ///
    /// # Errors
    ///
    /// When the kernel or a program refuses.
    pub(crate) async fn take_over(&mut self) -> Result<(), SyncError> {
        self.inputs.ways_known().await;
        match self.follow_catalog().await {
            Err(error) if !error.is_in_force() => Err(error),
            in_force => {
                // What is left to be done then, the loop does.
                let _ = self.outcome(Round::Follow, in_force);
                Ok(())
            }
        }
    }

    /// Goes on after another agent did not get through with taking over: whatever it left
    /// is put right by the next round.
    pub(crate) fn resume(&mut self) {
        for family in &mut self.families {
            family.backend.forget();
            // As at the start, when others may have had the portals' UDP flows.
            family.wanted = None;
        }
    }

    /// Leaves the rules, addresses and routes to another agent, whose rules are in force.
    /// The forwarder goes on for those who are connected already.
    pub(crate) async fn let_go(self) -> Forwarder {
        for family in self.families {
            if let Err(error) = family.backend.let_go().await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a table of ours is left beside that of the agent that has taken over; it \
                     vanishes with this process, and does no harm until then"
                );
            }
        }
        self.forwarder
    }

    /// Takes the rules out, so that kube-proxy takes over.
    pub(crate) async fn withdraw(self) -> Withdrawn {
        let mut hosts = Vec::new();
        for mut family in self.families {
            match family.backend.remove().await {
                Ok(_) => {
                    tracing::info!(family = %family.empty.family(), "rules are out");
                    let nothing = Arc::new(family.empty);
                    family.flows.rules_go(family.wanted.as_deref(), &nothing);
                    family.flows.tidy(&nothing).await;
                }
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "rules may be left; `edgemesh-agent cleanup` removes them"
                ),
            }
            hosts.push(family.host);
        }
        Withdrawn {
            forwarder: self.forwarder,
            host: OnHost(hosts),
        }
    }
}

/// The agent's addresses and routes on the host.
pub(crate) struct OnHost(Vec<HostNetwork>);

impl OnHost {
    /// Takes them away: nobody is connected any more, and no other agent needs them.
    pub(crate) async fn remove(self) {
        for mut host in self.0 {
            if let Err(error) = host.remove().await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "addresses or routes may be left; `edgemesh-agent cleanup` removes them"
                );
            }
        }
    }
}

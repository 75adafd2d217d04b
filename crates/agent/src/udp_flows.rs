//! When UDP flows have to be taken out of connection tracking, because the rules that they
//! began by are no more.

use std::sync::Arc;

use edgemesh_rules::{LeftWays, Ruleset, remove_stale_flows, udp_ways_left};

/// Looks after the rules changed. A datagram that met the old rules may become a flow just
/// after the first one; a second one, at the next check of the rules, finds it.
const LOOKS: u32 = 2;

/// One family's flows.
#[derive(Debug, Default)]
pub(crate) struct UdpFlows {
    looks_due: u32,
    /// Ways that the kernel does not go any more, until the last look that is due.
    left: Arc<LeftWays>,
    /// It was said that flows can't be removed.
    told: bool,
}

impl UdpFlows {
    /// The rules are others now; `before` is none when an agent before this one made them.
    pub(crate) fn rules_changed(&mut self, before: Option<&Ruleset>, now: &Ruleset) {
        match before.map(|before| udp_ways_left(before, now)) {
            None => self.looks_due = LOOKS,
            Some(None) => {}
            Some(Some(left)) => {
                self.looks_due = LOOKS;
                if !left.is_empty() {
                    Arc::make_mut(&mut self.left).extend(left);
                }
            }
        }
    }

    /// The rules are going, and whoever comes after knows the same endpoints: flows that the
    /// kernel took there go on, those through this agent can't.
    pub(crate) fn rules_go(&mut self, before: Option<&Ruleset>, nothing: &Ruleset) {
        self.rules_changed(before, nothing);
        self.left = Arc::default();
    }

    /// Removes flows that lead to where `rules` send nobody, if there may be any.
    pub(crate) async fn tidy(&mut self, rules: &Arc<Ruleset>) {
        if self.looks_due == 0 {
            return;
        }
        self.looks_due -= 1;
        let left = if self.looks_due == 0 {
            std::mem::take(&mut self.left)
        } else {
            Arc::clone(&self.left)
        };
        match remove_stale_flows(Arc::clone(rules), left).await {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(family = %rules.family(), flows, "stale UDP flows ended"),
            Err(error) if !self.told => {
                self.told = true;
                tracing::warn!(
                    %error, family = %rules.family(),
                    "can't remove stale UDP flows from connection tracking (it takes the kernel \
                     module nf_conntrack_netlink): UDP clients that keep their port may be stuck \
                     for as long as they keep sending, after a Service or the agent changed"
                );
            }
            Err(error) => tracing::debug!(%error, "stale UDP flows are left"),
        }
    }
}

//! Word of endpoints that are dialled natively and not reached, for whoever decides by which
//! way a node is reached.

use std::net::IpAddr;

use edgemesh_catalog::NodeName;
use edgemesh_plan::{PortalEndpoint, Way};
use tokio::sync::mpsc;

use crate::reasons::DialFault;

/// An endpoint on a node that was dialled natively and did not answer, or to which there is
/// no way. One that refuses is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReached {
    /// The endpoint's node.
    pub node: NodeName,
    /// The endpoint's address.
    pub endpoint: IpAddr,
}

/// Sends such word, to nobody by default.
#[derive(Clone, Debug, Default)]
pub struct DialReports(Option<mpsc::Sender<NotReached>>);

impl DialReports {
    /// Sends it there. What does not fit is dropped: word of the same comes again.
    #[must_use]
    pub fn to(receiver: mpsc::Sender<NotReached>) -> Self {
        Self(Some(receiver))
    }

    /// An attempt to connect with `endpoint` failed.
    pub(crate) fn failed(&self, endpoint: &PortalEndpoint, fault: DialFault) {
        let is_native = endpoint.way == Way::Native;
        let is_lost = matches!(fault, DialFault::TimedOut | DialFault::Unreachable);
        if let (Some(receiver), Some(node), true) = (&self.0, &endpoint.node, is_native && is_lost)
        {
            let _ = receiver.try_send(NotReached {
                node: node.clone(),
                endpoint: endpoint.address.ip(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_sent_of_silence_on_native_ways_to_other_nodes_only() {
        let (sender, mut receiver) = mpsc::channel(8);
        let reports = DialReports::to(sender);
        let endpoint = |node: Option<&str>, way| PortalEndpoint {
            address: ([10, 244, 1, 2], 80).into(),
            node: node.map(NodeName::new),
            way,
        };
        reports.failed(&endpoint(Some("cloud"), Way::Native), DialFault::Refused);
        reports.failed(&endpoint(Some("cloud"), Way::Tunnel), DialFault::TimedOut);
        reports.failed(&endpoint(None, Way::Native), DialFault::TimedOut);
        assert!(receiver.try_recv().is_err());
        reports.failed(&endpoint(Some("cloud"), Way::Native), DialFault::TimedOut);
        assert_eq!(
            receiver.try_recv(),
            Ok(NotReached {
                node: NodeName::new("cloud"),
                endpoint: [10, 244, 1, 2].into(),
            })
        );
        // Nobody listens any more.
        drop(receiver);
        reports.failed(&endpoint(Some("cloud"), Way::Native), DialFault::TimedOut);
    }
}

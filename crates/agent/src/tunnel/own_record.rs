//! What this agent says of itself to its peers, for its MeshNode.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgemesh_catalog::{Catalog, MeshNode, NodeName};
use edgemesh_plan::Exits;
use edgemesh_tunnel::{NodeKey, Tunnel};
use edgemesh_watch::{Condition, OwnMeshNode};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// How often is looked whether the agent is ready.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What of it does not change while the agent runs.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) node: NodeName,
    pub(super) key: NodeKey,
    /// Addresses that the operator names, best first.
    pub(super) advertised: Vec<SocketAddr>,
    pub(super) boot_id: Arc<str>,
    /// Where the tunnel's socket is bound, by family.
    pub(super) listening: Vec<SocketAddr>,
}

impl Standing {
    pub(super) fn new(
        node: NodeName,
        key: NodeKey,
        advertised: Vec<SocketAddr>,
        tunnel: &Tunnel,
    ) -> Self {
        Self {
            node,
            key,
            advertised,
            boot_id: tunnel.boot_id().into(),
            listening: tunnel.listening_at(),
        }
    }

    /// The record by what the cluster knows of the node.
    fn record(&self, catalog: &Catalog) -> MeshNode {
        let node = catalog.node(&self.node);
        let known = node.map(|node| node.addresses.as_slice());
        MeshNode {
            name: self.node.clone(),
            uid: None,
            public_key: self.key.public(),
            addresses: self.addresses(known.unwrap_or_default()),
            relay_url: None,
            relay_server: None,
            pod_cidrs: node.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: Arc::clone(&self.boot_id),
            previous_key: self.key.previous().cloned().map(Box::new),
        }
    }

    /// What the operator names, then what the cluster knows, with the port of that family.
    fn addresses(&self, known: &[IpAddr]) -> Vec<SocketAddr> {
        let with_port = |ip: &IpAddr| {
            let port = self
                .listening
                .iter()
                .find(|at| at.is_ipv4() == ip.is_ipv4())?
                .port();
            Some(SocketAddr::new(*ip, port))
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in self
            .advertised
            .iter()
            .copied()
            .chain(known.iter().filter_map(with_port))
        {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(MeshNode::MAX_ADDRESSES);
        addresses
    }
}

/// Keeps saying who this agent is and how it fares, until `stop`.
pub(super) async fn keep_saying(
    standing: Standing,
    mut exits: watch::Receiver<Arc<Exits>>,
    health: Health,
    own: watch::Sender<Option<OwnMeshNode>>,
    stop: CancellationToken,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready = Readiness::default();
    loop {
        let catalog = exits.borrow_and_update().catalog().clone();
        // Not before the cluster's word of this node: its addresses and pods are part of it.
        if !catalog.is_empty() {
            let said = OwnMeshNode {
                node: standing.record(&catalog),
                conditions: vec![ready.condition(health.ready(), SystemTime::now())],
            };
            own.send_if_modified(|known| {
                let news = known.as_ref() != Some(&said);
                if news {
                    *known = Some(said);
                }
                news
            });
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = exits.changed() => {}
            _ = look.tick() => {}
        }
    }
}

/// Whether the agent is ready, and since when it is or is not.
#[derive(Debug, Default)]
struct Readiness(Option<(bool, SystemTime)>);

impl Readiness {
    /// The condition by what `/readyz` tells at `now`.
    fn condition(&mut self, (ready, report): (bool, String), now: SystemTime) -> Condition {
        let since = match self.0 {
            Some((known, since)) if known == ready => since,
            Some(_) | None => now,
        };
        self.0 = Some((ready, since));
        let wrong: Vec<&str> = report
            .lines()
            .filter_map(|line| line.strip_prefix("[-] "))
            .collect();
        Condition {
            kind: "Ready".into(),
            status: Some(ready),
            reason: if ready { "Serving" } else { "NotReady" }.into(),
            message: if ready {
                "the agent serves its node".into()
            } else {
                wrong.join("; ").into()
            },
            since,
        }
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{Change, Fold, Node};

    use super::*;

    fn standing(advertised: &[&str], listening: &[&str]) -> Standing {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Standing {
            node: NodeName::new("edge-1"),
            key: NodeKey::generate(),
            advertised: parse(advertised),
            boot_id: "b1".into(),
            listening: parse(listening),
        }
    }

    fn catalog(addresses: &[&str]) -> Catalog {
        let mut fold = Fold::default();
        fold.apply(Change::Node(Node {
            name: NodeName::new("edge-1"),
            zone: None,
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        }));
        fold.catalog()
    }

    #[test]
    fn the_operators_addresses_come_first_and_the_nodes_own_get_the_port_of_their_family() {
        let standing = standing(
            &["203.0.113.5:20006", "192.168.1.7:20006"],
            &["0.0.0.0:20006", "[::]:40000"],
        );
        let record = standing.record(&catalog(&["192.168.1.7", "2001:db8::7"]));
        let addresses: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            addresses,
            [
                "203.0.113.5:20006",
                "192.168.1.7:20006",
                "[2001:db8::7]:40000"
            ]
        );
        assert_eq!(record.pod_cidrs.len(), 1);
        assert_eq!(record.public_key, standing.key.public());
    }

    #[test]
    fn an_address_of_a_family_that_is_not_listened_at_is_not_told() {
        let standing = standing(&[], &["0.0.0.0:20006"]);
        let record = standing.record(&catalog(&["192.168.1.7", "2001:db8::7"]));
        assert_eq!(record.addresses.len(), 1);
    }

    #[test]
    fn no_more_addresses_are_told_than_peers_take() {
        let many: Vec<String> = (1..=40).map(|n| format!("192.168.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let record = standing(&[], &["0.0.0.0:20006"]).record(&catalog(&many));
        assert_eq!(record.addresses.len(), MeshNode::MAX_ADDRESSES);
    }

    #[test]
    fn readiness_is_dated_from_its_last_change_and_says_what_is_missing() {
        let mut ready = Readiness::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let not = || (false, "[+] catalog ok\n[-] rules: not yet\n".to_owned());
        assert_eq!(&*ready.condition(not(), at(1)).message, "rules: not yet");
        assert_eq!(ready.condition(not(), at(2)).since, at(1));
        let now = ready.condition((true, String::new()), at(3));
        assert_eq!((now.status, now.since), (Some(true), at(3)));
    }
}

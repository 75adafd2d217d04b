//! The rules by which the kernel sends connections to endpoints itself, each as nft writes it
//! and as the kernel takes it.
//!
//! **Masquerading** is kube-proxy's (kubernetes `pkg/proxy/nftables/proxier.go`): what a pod
//! sends to itself; what comes from outside the pods' networks where these are known, the host
//! included; where they are not, what the host sends, as kubeadm's kube-proxy does. Which
//! connections are meant is asked of connection tracking: those that began with a portal's
//! address and were sent elsewhere. So no mark is put on packets, which tunnels would take over
//! to their own. Nothing is masqueraded twice: the first decision on a connection's sender
//! counts, too.

use std::borrow::Cow;
use std::net::SocketAddr;

use edgemesh_catalog::Protocol;
use ipnet::IpNet;

use super::expression::{Expressions, Verdict};
use super::rule::{Rule, gate, own_traffic};
use super::table_name::{ADDRESSES, ENDPOINTS, FIRST_CHOICES, HAIRPINS, MASQUERADING, SHARED};
use crate::{Family, RuleComment, Ruleset};

/// The comment of the rule that asks the map of portals with several destinations.
pub(super) const SEVERAL_DESTINATIONS: &str = "edgemesh: ClusterIPs with several destinations";

impl Rule {
    /// Portals with several destinations.
    pub(super) fn shared(family: Family) -> Self {
        let name = family.nft_name();
        Self {
            text: format!("{name} daddr . meta l4proto . th dport vmap @{SHARED}"),
            expressions: Expressions::default().verdict_by(family, SHARED),
            comment: SEVERAL_DESTINATIONS.into(),
        }
    }

    /// One of so many destinations of a portal, if it is an endpoint that the kernel serves.
    pub(super) fn among(family: Family, slots: u32) -> Self {
        let name = family.nft_name();
        Self {
            text: format!(
                "dnat {name} to {name} daddr . meta l4proto . th dport . \
                 numgen random mod {slots} map @{ENDPOINTS}"
            ),
            expressions: Expressions::default().send_by_drawn(family, slots, ENDPOINTS),
            comment: "edgemesh: one of them, each as likely".into(),
        }
    }

    /// Who is in the set of an endpoint's clients is sent to its chain.
    pub(super) fn keep(family: Family, set: &str, chain: &str, comment: &RuleComment) -> Self {
        Self {
            text: format!("{} saddr @{set} goto {chain}", family.nft_name()),
            expressions: Expressions::default()
                .sent_by_any_of(family, set)
                .over_to(chain),
            comment: named(comment),
        }
    }

    /// Whoever has no endpoint is sent to the chain of one.
    pub(super) fn first_choice(family: Family, slots: u32, comment: &RuleComment) -> Self {
        Self {
            text: format!(
                "{} daddr . meta l4proto . th dport . numgen random mod {slots} \
                 vmap @{FIRST_CHOICES}",
                family.nft_name()
            ),
            expressions: Expressions::default().drawn_verdict_by(family, slots, FIRST_CHOICES),
            comment: named(comment),
        }
    }

    /// The client is in the set from now on, or for longer.
    pub(super) fn remember(family: Family, set: &str, comment: &RuleComment) -> Self {
        Self {
            text: format!("update @{set} {{ {} saddr }}", family.nft_name()),
            expressions: Expressions::default().remember_source_in(family, set),
            comment: named(comment),
        }
    }

    /// To an endpoint.
    pub(super) fn send(protocol: Protocol, endpoint: SocketAddr, comment: &RuleComment) -> Self {
        Self {
            text: format!("meta l4proto {protocol} dnat to {endpoint}"),
            expressions: Expressions::default()
                .of_protocol(protocol)
                .send_to(endpoint),
            comment: named(comment),
        }
    }
}

/// The rules of the base chain in postrouting: which connections we sent to endpoints.
pub(super) fn leaving(rules: &Ruleset) -> Vec<Rule> {
    let (family, name) = (rules.family(), rules.family().nft_name());
    let to_the_agent = Rule {
        text: format!("{name} daddr {} return", rules.intercept()),
        expressions: Expressions::default()
            .for_address(rules.intercept())
            .verdict(Verdict::Return),
        comment: "edgemesh: to the agent as it is".into(),
    };
    let by_the_kernel = Rule {
        text: format!("ct status dnat ct original {name} daddr @{ADDRESSES} goto {MASQUERADING}"),
        expressions: Expressions::default()
            .of_sent_connection()
            .once_for_any_of(family, ADDRESSES)
            .over_to(MASQUERADING),
        comment: "edgemesh: through a ClusterIP, by the kernel".into(),
    };
    vec![gate(), own_traffic(rules), to_the_agent, by_the_kernel]
}

/// The rules for these connections: whose sender is not to be seen.
pub(super) fn masquerading(rules: &Ruleset) -> Vec<Rule> {
    let (family, name) = (rules.family(), rules.family().nft_name());
    let mut all = vec![Rule {
        text: format!("{name} saddr . {name} daddr @{HAIRPINS} masquerade fully-random"),
        expressions: Expressions::default()
            .between_any_of(family, HAIRPINS)
            .masquerade(),
        comment: "edgemesh: a pod to itself".into(),
    }];
    all.extend(rules.pods().iter().map(|pods| from_pods(family, *pods)));
    all.push(match rules.pods() {
        [] => Rule {
            text: "fib saddr type local masquerade fully-random".to_owned(),
            expressions: Expressions::default().sent_by_this_host().masquerade(),
            comment: "edgemesh: the host".into(),
        },
        _ => Rule {
            text: "masquerade fully-random".to_owned(),
            expressions: Expressions::default().masquerade(),
            comment: "edgemesh: from outside the pods' networks".into(),
        },
    });
    all
}

fn from_pods(family: Family, pods: IpNet) -> Rule {
    Rule {
        text: format!("{} saddr {pods} return", family.nft_name()),
        expressions: Expressions::default()
            .sent_from(pods)
            .verdict(Verdict::Return),
        comment: "edgemesh: pods as they are".into(),
    }
}

fn named(comment: &RuleComment) -> Cow<'static, str> {
    Cow::Owned(super::wire::shortened(comment.as_str()).to_owned())
}

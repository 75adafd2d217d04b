//! The chains of a portal whose clients keep their endpoints, as kube-proxy makes them
//! (kubernetes `pkg/proxy/nftables/proxier.go`, `writeServiceAffinityRules`): each endpoint has a
//! set of the clients that were sent to it, which forgets who is silent.
//!
//! One map from clients to endpoints would take one look instead of one for each endpoint. But
//! then the kernel has to draw the endpoint, remember it, and later find that it is there still,
//! by rules that nft has no words for, so that whoever lists the ruleset would read something
//! else, or an error. With sets, who is remembered for an endpoint that goes is forgotten
//! with its set.

use std::net::SocketAddr;
use std::time::Duration;

use edgemesh_plan::Frontend;

use super::element::{Element, Key, Leads};
use super::rule::Rule;
use super::serving::{Chain, Parts, name_of, name_of_ip};
use crate::{Family, KernelPath, RuleComment};

const STICKY: &str = "sticky/";

/// Such a portal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sticky<'a> {
    pub(super) frontend: &'a Frontend,
    pub(super) path: &'a KernelPath,
    /// How long a client may be silent.
    pub(super) silence: Duration,
    pub(super) comment: &'a RuleComment,
}

impl Sticky<'_> {
    /// The chain that sends clients to their endpoints.
    pub(super) fn chain_name(&self) -> String {
        format!("{STICKY}{}", name_of(self.frontend))
    }

    fn endpoint_chain(&self, endpoint: SocketAddr) -> String {
        let ip = name_of_ip(endpoint.ip());
        format!("{}/{ip}/{}", self.chain_name(), endpoint.port())
    }

    /// Sets of the same clients that forget sooner or later are others.
    fn clients_set(&self, endpoint: SocketAddr) -> String {
        let chain = self.endpoint_chain(endpoint);
        format!("{chain}/{}s", self.silence.as_secs())
    }

    /// Adds all that it takes, but that which leads into its chain.
    pub(super) fn put_into(&self, parts: &mut Parts) {
        let family = Family::of(self.frontend.ip);
        let protocol = self.frontend.protocol;
        let mut rules = Vec::new();
        let mut slots = 0;
        for endpoint in self.path.numbered() {
            let set = self.clients_set(endpoint);
            let name = self.endpoint_chain(endpoint);
            rules.push(Rule::keep(family, &set, &name, self.comment));
            let chain = Chain {
                name: name.clone(),
                rules: vec![
                    Rule::remember(family, &set, self.comment),
                    Rule::send(protocol, endpoint, self.comment),
                ],
            };
            parts.sets.insert(set, self.silence);
            parts.chains.insert(name.clone(), chain);
            parts.add(Element {
                key: Key::FirstChoice(*self.frontend, slots),
                leads: Leads::Over(name),
                comment: None,
            });
            slots += 1;
        }
        rules.push(Rule::first_choice(family, slots, self.comment));
        let name = self.chain_name();
        parts.chains.insert(name.clone(), Chain { name, rules });
    }
}

/// The endpoint of a portal that the chain of this name sends to.
pub(super) fn endpoint_of(family: Family, chain: &str) -> Option<SocketAddr> {
    let mut parts = chain.strip_prefix(STICKY)?.rsplitn(3, '/');
    let (port, ip) = (parts.next()?, parts.next()?);
    let ip = match family {
        Family::V4 => ip.to_owned(),
        Family::V6 => ip.replace('-', ":"),
    };
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::{KernelEndpoint, Sharing};

    proptest! {
        #[test]
        fn an_endpoint_is_read_from_the_name_of_its_chain(to: SocketAddr, port: u16) {
            let to = SocketAddr::new(to.ip(), to.port());
            let endpoint = KernelEndpoint { address: to, is_pod_here: false };
            let silence = Duration::from_secs(9);
            let path = KernelPath::new([endpoint], Sharing::Sticky(silence)).unwrap();
            let frontend = Frontend { ip: to.ip(), protocol: Protocol::Udp, port };
            let comment = RuleComment::new("default/web");
            let sticky = Sticky { frontend: &frontend, path: &path, silence, comment: &comment };
            let name = sticky.endpoint_chain(to);
            let read = endpoint_of(Family::of(to.ip()), &name);
            // The scope of an address is no part of it.
            prop_assert_eq!(read.map(|read| (read.ip(), read.port())), Some((to.ip(), to.port())));
            prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c)));
        }
    }
}

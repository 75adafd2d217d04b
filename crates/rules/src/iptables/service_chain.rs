//! The chain by which a portal's connections are shared among endpoints.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use sha2::{Digest, Sha256};

use crate::chain_names::SERVICE_PREFIX;
use crate::{KernelPath, PortalRule, Ruleset, Sharing};

/// How many letters of a hash a name holds: with its prefix it has the 28 bytes that
/// iptables allows (`XT_EXTENSION_MAXNAMELEN`, 29 with its end).
const HASH_LETTERS: usize = 15;
const RECENT_PREFIX: &str = "EDGEMESH-SEP-";

/// What `-m statistic` counts in: it takes the chance as so many of 2^31
/// (iptables `extensions/libxt_statistic.c`).
const WHOLE: u32 = 1 << 31;

/// Where the rule of a portal leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortalTarget {
    /// To the agent, or to the only endpoint.
    Address(SocketAddr),
    /// To the chain of this name.
    Chain(String),
}

/// How a portal is served, as far as rules can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way<'a> {
    /// By the agent, at this port of the intercept address.
    Agent,
    /// By this endpoint alone.
    Straight(SocketAddr),
    /// By one of several, or by the agent.
    Shared(&'a KernelPath),
}

/// The way that the rules of `rules` take for one of its portals.
pub(crate) fn way<'a>(rules: &Ruleset, rule: &'a PortalRule) -> Way<'a> {
    let Some(path) = rule.kernel.as_deref() else {
        return Way::Agent;
    };
    if !rules.extensions().suffice_for(path) {
        return Way::Agent;
    }
    match (path.endpoints(), path.sharing()) {
        ([only], Sharing::Alone | Sharing::Sticky(_)) => Way::Straight(only.address),
        (_, Sharing::Alone | Sharing::Sticky(_) | Sharing::WithAgent(_)) => Way::Shared(path),
    }
}

/// Where the rule of a portal leads to.
pub(crate) fn target(rules: &Ruleset, frontend: &Frontend, rule: &PortalRule) -> PortalTarget {
    match way(rules, rule) {
        Way::Agent => PortalTarget::Address(rules.destination(rule)),
        Way::Straight(endpoint) => PortalTarget::Address(endpoint),
        Way::Shared(_) => PortalTarget::Chain(chain_name(frontend, rule.comment.as_str())),
    }
}

/// The name of a portal's chain. As kube-proxy's (kubernetes `pkg/proxy/iptables/proxier.go`,
/// `portProtoHash`) it is a hash that stays the same, so that the next agent finds the chain
/// again, and that nobody can have on purpose for a portal of his own.
pub(crate) fn chain_name(frontend: &Frontend, comment: &str) -> String {
    format!("{SERVICE_PREFIX}{}", hash(&format!("{comment} {frontend}")))
}

/// A rule of such a chain. It has no comment: to the kernel that is 256 bytes to copy and to walk
/// over for each rule, whenever any other rule is added, and the portal's rule, which names the
/// service port, is what leads here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointRule {
    pub(crate) protocol: Protocol,
    /// Which part of the connections that come as far as here it takes; none: all.
    pub(crate) share: Option<Share>,
    pub(crate) memory: Option<Memory>,
    pub(crate) to: SocketAddr,
}

/// A chance, in parts of 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(pub(crate) u32);

/// How clients are kept at an endpoint, by a list of those who went there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    list: String,
    act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Takes who is in the list and was seen in the last so many seconds, and has seen him.
    ///
    /// kube-proxy asks (`--rcheck`) and has an endpoint's own chain remember (`--set`); this is
    /// the same in one rule.
    Recall { seconds: u64 },
    /// Takes all, and remembers them.
    Remember,
}

/// The rules of the chain by which `rule` is shared, in their order; none where none is.
pub(crate) fn endpoint_rules(
    rules: &Ruleset,
    frontend: &Frontend,
    rule: &PortalRule,
) -> Vec<EndpointRule> {
    let Way::Shared(path) = way(rules, rule) else {
        return Vec::new();
    };
    let addresses: Vec<SocketAddr> = path.endpoints().iter().map(|e| e.address).collect();
    let plain = |to, share| EndpointRule {
        protocol: frontend.protocol,
        share,
        memory: None,
        to,
    };
    let kernels = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let shared = |all: u32| {
        (0..all)
            .zip(&addresses)
            .map(move |(taken, &to)| plain(to, Share::one_of(all - taken)))
    };
    match path.sharing() {
        Sharing::Alone => shared(kernels).collect(),
        Sharing::WithAgent(others) => shared(kernels.saturating_add(others.get()))
            .chain([plain(rules.destination(rule), None)])
            .collect(),
        Sharing::Sticky(time) => {
            let name = |to| list_name(frontend, rule.comment.as_str(), to);
            let recall = addresses.iter().map(|&to| EndpointRule {
                memory: Some(Memory::recall(name(to), time)),
                ..plain(to, None)
            });
            let remember = shared(kernels).map(|rule| EndpointRule {
                memory: Some(Memory::remember(name(rule.to))),
                ..rule
            });
            recall.chain(remember).collect()
        }
    }
}

impl Share {
    /// One of so many; none when it is the only one.
    fn one_of(all: u32) -> Option<Self> {
        // Rounded as iptables does.
        (all > 1).then(|| Self((WHOLE + all / 2) / all))
    }

    /// The share that a chance between 0 and 1 stands for.
    pub(crate) fn of_chance(text: &str) -> Option<Self> {
        let chance: f64 = text.parse().ok()?;
        let parts = (chance * f64::from(WHOLE)).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is within the range"
        )]
        (0.0..=f64::from(WHOLE))
            .contains(&parts)
            .then_some(Self(parts as u32))
    }
}

impl fmt::Display for Share {
    /// With as many digits as iptables-save prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.11}", f64::from(self.0) / f64::from(WHOLE))
    }
}

impl Memory {
    fn recall(list: String, time: Duration) -> Self {
        let act = Act::Recall {
            seconds: time.as_secs().max(1),
        };
        Self { list, act }
    }

    fn remember(list: String) -> Self {
        let act = Act::Remember;
        Self { list, act }
    }
}

/// The rule as iptables-save writes it, without the chain.
impl fmt::Display for EndpointRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-p {}", self.protocol)?;
        if let Some(share) = self.share {
            write!(f, " -m statistic --mode random --probability {share}")?;
        }
        if let Some(Memory { list, act }) = &self.memory {
            f.write_str(" -m recent ")?;
            match act {
                Act::Recall { seconds } => write!(f, "--update --seconds {seconds} --reap")?,
                Act::Remember => f.write_str("--set")?,
            }
            let mask = match self.to {
                SocketAddr::V4(_) => IpAddr::from([255; 4]),
                SocketAddr::V6(_) => IpAddr::from([255; 16]),
            };
            write!(f, " --name {list} --mask {mask} --rsource")?;
        }
        write!(f, " -j DNAT --to-destination {}", self.to)
    }
}

/// The name of the list of an endpoint's clients.
fn list_name(frontend: &Frontend, comment: &str, endpoint: SocketAddr) -> String {
    let hash = hash(&format!("{comment} {frontend} {endpoint}"));
    format!("{RECENT_PREFIX}{hash}")
}

/// The first letters of the text's SHA-256 in base 32 (RFC 4648).
fn hash(text: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const BITS: usize = 5;
    let digest = Sha256::digest(text.as_bytes());
    let bit = |at: usize| {
        let byte = digest.get(at / 8).copied().unwrap_or(0);
        usize::from(byte >> (7 - at % 8) & 1)
    };
    (0..HASH_LETTERS).fold(String::new(), |mut name, letter| {
        let bits = (letter * BITS..(letter + 1) * BITS).fold(0, |bits, at| bits << 1 | bit(at));
        // Writing to a string can't fail.
        let _ = name.write_char(LETTERS.get(bits).copied().map_or('A', char::from));
        name
    })
}

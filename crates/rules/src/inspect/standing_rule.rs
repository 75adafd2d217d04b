//! A rule as it stands in the kernel.

use crate::iptables::words::Words;

/// A rule as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingRule {
    /// Its chain.
    pub chain: String,
    /// Its place in the chain, counted from 1.
    pub place: usize,
    /// Its text as iptables-save prints it, without the chain.
    pub text: String,
    /// Packets that it matched; in nat tables, where only the first packet of a connection
    /// comes by, these are connections.
    pub packets: u64,
}

/// Where a rule leads: a chain, or what is done with the packet.
pub(super) fn target(spec: &str) -> Option<String> {
    let mut words = Words::of(spec);
    words
        .by_ref()
        .find(|word| matches!(word.as_ref(), "-j" | "--jump" | "-g" | "--goto"))?;
    words.next().map(std::borrow::Cow::into_owned)
}

//! Which chains the rules of portals stand in, with iptables.
//!
//! For each rule that is added, the kernel checks every rule that the chains of its table lead to,
//! once for each hook, and copies the changed chain (`nft_chain_validate` and
//! `nf_tables_commit_chain_prepare`, kernel `net/netfilter/nf_tables_api.c`). With thousands of
//! portals that is most of what a change costs; so their rules stand there once for both hooks,
//! and in many short chains.

use std::fmt;
use std::net::IpAddr;

use crate::chain_names::{BUCKET_PREFIX, OwnChain};

/// How the rules of portals are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortalLayout {
    /// Each portal's rule stands in the chains of both hooks.
    #[default]
    InBoth,
    /// Each portal's rule stands once, in one of 64 chains that both hooks' chains lead to: the
    /// one that the last bits of the portal's address pick.
    ByAddress,
}

impl PortalLayout {
    /// Up to so many portals, both hooks' chains hold them all.
    pub const MOST_IN_BOTH: usize = 512;

    /// With fewer than so many, they do so again. Between the two numbers all stays as it is:
    /// Services that come and go must not have all rules made anew each time.
    pub const FEWEST_BY_ADDRESS: usize = 256;

    /// The layout for so many portals, where there was this one before.
    #[must_use]
    pub fn after(self, portals: usize) -> Self {
        match self {
            PortalLayout::InBoth if portals > Self::MOST_IN_BOTH => PortalLayout::ByAddress,
            PortalLayout::ByAddress if portals < Self::FEWEST_BY_ADDRESS => PortalLayout::InBoth,
            PortalLayout::InBoth | PortalLayout::ByAddress => self,
        }
    }

    /// The chains of portals besides those of the hooks. They are there whether portals belong
    /// into them or not, so that one more never concerns what leads to them.
    pub(crate) fn buckets(self) -> impl Iterator<Item = Bucket> {
        let has_them = match self {
            PortalLayout::InBoth => false,
            PortalLayout::ByAddress => true,
        };
        Bucket::all().filter(move |_| has_them)
    }
}

/// The last bits of an address, and the chain of the portals whose address ends so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u8);

impl Bucket {
    /// How many there are. More would be chains that hardly any rule is in; with fewer, the
    /// kernel copies longer ones.
    pub(crate) const COUNT: u8 = 64;

    /// The bits of an address that tell it.
    pub(crate) const MASK: u8 = Self::COUNT - 1;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The one that an address belongs to.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        Self(last & Self::MASK)
    }

    /// The bits.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// The one whose chain has this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(BUCKET_PREFIX)?;
        let bits = u8::from_str_radix(digits, 16).ok()?;
        let bucket = (bits < Self::COUNT).then_some(Self(bits))?;
        (bucket.to_string() == name).then_some(bucket)
    }
}

/// The name of the chain.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BUCKET_PREFIX}{:02X}", self.0)
    }
}

/// A chain that may hold rules of portals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortalChain {
    /// The chain of a hook.
    Hook(OwnChain),
    /// The chain of the portals whose addresses end alike.
    Bucket(Bucket),
}

impl From<OwnChain> for PortalChain {
    fn from(chain: OwnChain) -> Self {
        PortalChain::Hook(chain)
    }
}

/// The chain's name.
impl fmt::Display for PortalChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortalChain::Hook(chain) => chain.fmt(f),
            PortalChain::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_stays_until_the_number_of_portals_is_well_beyond_the_limit() {
        use PortalLayout::{ByAddress, InBoth};
        for (before, portals, after) in [
            (InBoth, 0, InBoth),
            (InBoth, 512, InBoth),
            (InBoth, 513, ByAddress),
            (ByAddress, 512, ByAddress),
            (ByAddress, 256, ByAddress),
            (ByAddress, 255, InBoth),
        ] {
            assert_eq!(before.after(portals), after, "{before:?}, {portals}");
            assert_eq!(after.after(portals), after, "{before:?}, {portals}");
        }
    }

    #[test]
    fn a_bucket_is_told_by_the_last_six_bits_of_an_address() {
        for (address, name) in [
            ("10.96.0.1", "EDGEMESH-PORTALS-01"),
            ("10.96.0.255", "EDGEMESH-PORTALS-3F"),
            ("10.97.7.64", "EDGEMESH-PORTALS-00"),
            ("fd00:96::a6a", "EDGEMESH-PORTALS-2A"),
        ] {
            let bucket = Bucket::of(address.parse().unwrap());
            assert_eq!(bucket.to_string(), name);
            assert_eq!(Bucket::by_name(name), Some(bucket));
        }
    }

    #[test]
    fn no_other_name_is_a_buckets() {
        for name in [
            "EDGEMESH-PORTALS-HOST",
            "EDGEMESH-PORTALS-40",
            "EDGEMESH-PORTALS-2a",
            "EDGEMESH-PORTALS-2",
            "EDGEMESH-PORTALS-002",
            "EDGEMESH-PORTALS-+2",
            "EDGEMESH-PORTALS-",
            "EDGEMESH-SVC-2A",
        ] {
            assert_eq!(Bucket::by_name(name), None, "{name}");
        }
    }
}

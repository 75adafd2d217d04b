//! A rule as the options that it is made of, in whatever order and spelling.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use edgemesh_catalog::Protocol;
use ipnet::IpNet;

use crate::gate::{alive_set, portals_set};
use crate::ip_set::SetName;
use crate::iptables::service_chain::Share;
use crate::iptables::words::Words;
use crate::{Bucket, Family};

/// The options that rules of ours are made of. Two rules with the same options do the same.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options<'a> {
    pub(crate) source: Option<IpNet>,
    pub(crate) destination: Option<IpAddr>,
    /// To any address with these last bits.
    pub(crate) bucket: Option<(Family, Bucket)>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) dport: Option<u16>,
    pub(crate) comment: Option<Cow<'a, str>>,
    /// The value and the mask.
    pub(crate) mark: Option<(u32, u32)>,
    pub(crate) jump: Option<Cow<'a, str>>,
    pub(crate) to: Option<SocketAddr>,
    /// In the set of the living.
    pub(crate) alive: Option<Family>,
    /// Not in the set of the living.
    pub(crate) dead: Option<Family>,
    /// In the set of portals.
    pub(crate) portals: Option<Family>,
    /// Not in the set of portals.
    pub(crate) no_portal: Option<Family>,
    not_mark: Option<(u32, u32)>,
    set_mark: Option<(u32, u32)>,
    pub(crate) share: Option<Share>,
    local: Local,
    random_fully: bool,
    recent: Recent<'a>,
    /// Whose order is not the same to the kernel.
    matches_in_order: [Option<Chooses>; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Local {
    source: bool,
    destination: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Recent<'a> {
    act: Option<Cow<'a, str>>,
    list: Option<Cow<'a, str>>,
    seconds: Option<u64>,
    reaps: bool,
    by_source: bool,
    mask: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chooses {
    ByChance,
    ByMemory,
}

/// Whether both texts are one rule.
pub(crate) fn same_rule(one: &str, other: &str) -> bool {
    one == other || Options::read(one).is_some_and(|one| Some(one) == Options::read(other))
}

impl<'a> Options<'a> {
    /// None when an option occurs that no rule of ours has, or one occurs twice.
    pub(crate) fn read(spec: &'a str) -> Option<Self> {
        let mut options = Self::default();
        let mut words = Words::of(spec);
        while let Some(option) = words.next() {
            if !options.take_flag(&option)? {
                options.take(&option, &mut words)?;
            }
        }
        Some(options)
    }

    /// Takes an option without a value; whether it was one.
    fn take_flag(&mut self, option: &str) -> Option<bool> {
        let flag = match option {
            "--random-fully" => &mut self.random_fully,
            "--reap" => &mut self.recent.reaps,
            "--rsource" => &mut self.recent.by_source,
            "--set" | "--update" | "--rcheck" => {
                set(&mut self.recent.act, Some(option.to_owned().into()))?;
                return Some(true);
            }
            _ => return Some(false),
        };
        (!std::mem::replace(flag, true)).then_some(true)
    }

    fn take(&mut self, option: &str, words: &mut Words<'a>) -> Option<()> {
        let value = words.next()?;
        match option {
            "-m" | "--match" => self.take_match(&value),
            "!" => self.take_negated(&value, words),
            "--match-set" => match words.next()?.as_ref() {
                "dst" => set(&mut self.alive, named(&value, alive_set)),
                "dst,dst" => set(&mut self.portals, named(&value, portals_set)),
                _ => None,
            },
            "-s" | "--source" => set(&mut self.source, network(&value)),
            "-d" | "--destination" => match bucket(&value) {
                Some(bucket) => set(&mut self.bucket, Some(bucket)),
                None => set(&mut self.destination, host(&value)),
            },
            "-p" | "--protocol" => set(&mut self.protocol, protocol(&value)),
            "--dport" | "--destination-port" => set(&mut self.dport, value.parse().ok()),
            "--comment" => set(&mut self.comment, Some(value)),
            "--mark" => set(&mut self.mark, mark(&value)),
            "--set-xmark" => set(&mut self.set_mark, mark(&value)),
            "--mode" => (value == "random").then_some(()),
            "--probability" => set(&mut self.share, Share::of_chance(&value)),
            "--src-type" => local(&mut self.local.source, &value),
            "--dst-type" => local(&mut self.local.destination, &value),
            "--name" => set(&mut self.recent.list, Some(value)),
            "--seconds" => set(&mut self.recent.seconds, value.parse().ok()),
            "--mask" => set(&mut self.recent.mask, value.parse().ok()),
            "-j" | "--jump" => set(&mut self.jump, Some(value)),
            "--to-destination" => set(&mut self.to, value.parse().ok()),
            _ => None,
        }
    }

    fn take_match(&mut self, name: &str) -> Option<()> {
        let chooses = match name {
            "tcp" | "udp" | "comment" | "mark" | "set" | "addrtype" => return Some(()),
            "statistic" => Chooses::ByChance,
            "recent" => Chooses::ByMemory,
            _ => return None,
        };
        let place = self.matches_in_order.iter_mut().find(|m| m.is_none())?;
        *place = Some(chooses);
        Some(())
    }

    fn take_negated(&mut self, option: &str, words: &mut Words<'a>) -> Option<()> {
        let value = words.next()?;
        match option {
            "--mark" => set(&mut self.not_mark, mark(&value)),
            "--match-set" => match words.next()?.as_ref() {
                "dst" => set(&mut self.dead, named(&value, alive_set)),
                "dst,dst" => set(&mut self.no_portal, named(&value, portals_set)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn set<T>(option: &mut Option<T>, value: Option<T>) -> Option<()> {
    if option.is_some() {
        return None;
    }
    *option = Some(value?);
    Some(())
}

fn local(option: &mut bool, value: &str) -> Option<()> {
    (value == "LOCAL" && !std::mem::replace(option, true)).then_some(())
}

/// The family whose set of this purpose has this name.
fn named(name: &str, purpose: impl Fn(Family) -> SetName) -> Option<Family> {
    Family::BOTH
        .into_iter()
        .find(|family| purpose(*family).name == name)
}

/// A single address: with its full prefix length, its full mask, or bare.
fn host(text: &str) -> Option<IpAddr> {
    let (address, mask) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let whole = match address {
        IpAddr::V4(_) => matches!(mask, "" | "32" | "255.255.255.255"),
        IpAddr::V6(_) => matches!(mask, "" | "128" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    };
    whole.then_some(address)
}

/// Nothing but the last bits of an address.
fn bucket(text: &str) -> Option<(Family, Bucket)> {
    let (bits, mask) = text.split_once('/')?;
    let (bits, mask): (IpAddr, IpAddr) = (bits.parse().ok()?, mask.parse().ok()?);
    let (family, bucket) = (Family::of(bits), Bucket::of(bits));
    let whole = (
        last_bits(family, bucket.bits()),
        last_bits(family, Bucket::MASK),
    );
    ((bits, mask) == whole).then_some((family, bucket))
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(host(text)?.into()))
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        _ => None,
    }
}

/// A mark and its mask; without a mask all bits count.
fn mark(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// An address of which nothing but the last bits is there.
pub(crate) fn last_bits(family: Family, bits: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::from(bits)).into(),
        Family::V6 => Ipv6Addr::from(u128::from(bits)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STICKY: &str = "-p tcp -m comment --comment \"default/web\" -m statistic --mode random \
                          --probability 0.33333333349 -m recent --set --name EDGEMESH-SEP-A \
                          --mask 255.255.255.255 --rsource -j DNAT \
                          --to-destination 10.244.1.2:80";

    #[test]
    fn rules_are_the_same_in_whatever_order_and_spelling() {
        for (one, other) in [
            (
                "-s 10.244.1.0/24 -m comment --comment x -j RETURN",
                "-m comment --comment \"x\" --source 10.244.1.0/24 --jump RETURN",
            ),
            (
                "-s 10.244.1.2/32 -d 10.244.1.2/32 -j MASQUERADE --random-fully",
                "-d 10.244.1.2 -s 10.244.1.2 -j MASQUERADE --random-fully",
            ),
            (
                "-m mark ! --mark 0x1000/0x1000 -j RETURN",
                "-m mark ! --mark 4096/4096 -j RETURN",
            ),
            (STICKY, &STICKY.replace("0.33333333349", "0.3333333335")),
        ] {
            assert!(same_rule(one, other), "{one} | {other}");
        }
    }

    #[test]
    fn whoever_remembers_before_chance_has_decided_remembers_too_many() {
        let (chance, memory) = (
            "-m statistic --mode random --probability 0.33333333349 ",
            "-m recent --set --name EDGEMESH-SEP-A --mask 255.255.255.255 --rsource ",
        );
        let other = STICKY.replace(&format!("{chance}{memory}"), &format!("{memory}{chance}"));
        assert_ne!(other, STICKY);
        assert!(!same_rule(STICKY, &other));
    }

    #[test]
    fn rules_with_anything_added_or_changed_are_not_the_same() {
        for other in [
            STICKY.replace("0.33333333349", "0.33333333"),
            STICKY.replace("--set", "--rcheck"),
            STICKY.replace("SEP-A", "SEP-B"),
            STICKY.replace(" --rsource", ""),
            STICKY.replace("random", "nth"),
            format!("{STICKY} --random-fully"),
            format!("-i eth0 {STICKY}"),
        ] {
            assert!(!same_rule(STICKY, &other), "{other}");
        }
        let local = "-m addrtype --dst-type LOCAL -j RETURN";
        assert!(!same_rule(local, &local.replace("dst", "src")));
        assert!(!same_rule(local, &local.replace("LOCAL", "BROADCAST")));
        let marked = "-m mark --mark 0x1000/0x1000 -j RETURN";
        assert!(!same_rule(marked, &marked.replace("-m mark", "-m mark !")));
    }
}

//! The rules of our chains: what they are, how they are written, how they are recognised.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use crate::gate::{alive_set, portals_set};
use crate::ip_set::SetName;
use crate::iptables::words::Words;
use crate::{Family, Gate, Mark, Ruleset};

const OWN_TRAFFIC_COMMENT: &str = "edgemesh: the agent's own traffic";
const NO_PORTAL_COMMENT: &str = "edgemesh: not through a portal";
const LEFT_COMMENT: &str = "edgemesh: kube-proxy's while no agent lives";
const REFUSED_COMMENT: &str = "edgemesh: refused while no agent lives";

/// A rule of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OwnRule<'a> {
    /// What the agent sends itself passes unchanged.
    OwnTraffic(Mark),
    /// Whoever addresses a listener of ours itself, not through a portal, is refused:
    /// no open proxy, no loop.
    NotThroughPortal {
        protocol: Protocol,
        listener: IpAddr,
        refused_at: SocketAddr,
    },
    /// While no agent lives, all goes on to kube-proxy.
    LeftWhileDead(Family),
    /// While no agent lives, what is meant for a portal is refused.
    RefusedWhileDead {
        protocol: Protocol,
        refused_at: SocketAddr,
    },
    /// A portal's traffic goes to the agent.
    Portal {
        frontend: Frontend,
        to: SocketAddr,
        comment: Cow<'a, str>,
    },
}

/// The rules that stand first in both chains, in their order.
pub(crate) fn fixed_rules(rules: &Ruleset) -> Vec<OwnRule<'static>> {
    const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
    let refused_at = rules.refused_at();
    let mut fixed = vec![OwnRule::OwnTraffic(rules.mark())];
    fixed.extend(PROTOCOLS.map(|protocol| OwnRule::NotThroughPortal {
        protocol,
        listener: rules.intercept(),
        refused_at,
    }));
    match rules.gate() {
        Gate::None => {}
        Gate::KubeProxy => fixed.push(OwnRule::LeftWhileDead(rules.family())),
        Gate::Refuse => fixed.extend(PROTOCOLS.map(|protocol| OwnRule::RefusedWhileDead {
            protocol,
            refused_at,
        })),
    }
    fixed
}

/// The rules of the portals, sorted by frontend.
pub(crate) fn portal_rules(rules: &Ruleset) -> impl Iterator<Item = OwnRule<'_>> {
    rules
        .portals()
        .iter()
        .map(|(&frontend, rule)| OwnRule::Portal {
            frontend,
            to: rules.destination(rule),
            comment: Cow::Borrowed(rule.comment.as_str()),
        })
}

/// The rule as iptables-save writes it, without the chain.
impl fmt::Display for OwnRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OwnRule::OwnTraffic(mark) => write!(
                f,
                "-m mark --mark {mark}/{mark} -m comment --comment \"{OWN_TRAFFIC_COMMENT}\" \
                 -j RETURN"
            ),
            OwnRule::NotThroughPortal {
                protocol,
                listener,
                refused_at,
            } => write!(
                f,
                "-d {listener}/{} -p {protocol} -m comment --comment \"{NO_PORTAL_COMMENT}\" \
                 -j DNAT --to-destination {refused_at}",
                Family::of(*listener).host_prefix()
            ),
            OwnRule::LeftWhileDead(family) => write!(
                f,
                "-m set ! --match-set {} dst -m comment --comment \"{LEFT_COMMENT}\" -j RETURN",
                alive_set(*family).name
            ),
            OwnRule::RefusedWhileDead {
                protocol,
                refused_at,
            } => {
                let family = Family::of(refused_at.ip());
                write!(
                    f,
                    "-p {protocol} -m set ! --match-set {} dst -m set --match-set {} dst,dst \
                     -m comment --comment \"{REFUSED_COMMENT}\" -j DNAT \
                     --to-destination {refused_at}",
                    alive_set(family).name,
                    portals_set(family).name
                )
            }
            OwnRule::Portal {
                frontend,
                to,
                comment,
            } => write!(
                f,
                "-d {}/{} -p {protocol} -m comment --comment \"{comment}\" -m {protocol} \
                 --dport {} -j DNAT --to-destination {to}",
                frontend.ip,
                Family::of(frontend.ip).host_prefix(),
                frontend.port,
                protocol = frontend.protocol,
            ),
        }
    }
}

/// Writes one line of an iptables-restore input.
pub(crate) fn write_line(out: &mut String, verb: &str, chain: &str, rule: &dyn fmt::Display) {
    // Writing to a string can't fail.
    let _ = writeln!(out, "{verb} {chain} {rule}");
}

/// Reads a rule (without its chain) as one of ours, whatever the order of its options;
/// none when it is somebody else's, or ours with something added or changed.
pub(crate) fn recognise(spec: &str) -> Option<OwnRule<'_>> {
    match Options::read(spec)? {
        Options {
            mark: Some((value, mask)),
            comment: Some(comment),
            jump: Some(jump),
            destination: None,
            protocol: None,
            dport: None,
            to: None,
            dead: None,
            portals: None,
        } if comment == OWN_TRAFFIC_COMMENT && jump == "RETURN" && value == mask => {
            Some(OwnRule::OwnTraffic(single_bit(value)?))
        }
        Options {
            mark: None,
            comment: Some(comment),
            jump: Some(jump),
            destination: None,
            protocol: None,
            dport: None,
            to: None,
            dead: Some(family),
            portals: None,
        } if comment == LEFT_COMMENT && jump == "RETURN" => Some(OwnRule::LeftWhileDead(family)),
        Options {
            mark: None,
            comment: Some(comment),
            jump: Some(jump),
            destination: None,
            protocol: Some(protocol),
            dport: None,
            to: Some(refused_at),
            dead: Some(family),
            portals: Some(of_family),
        } if comment == REFUSED_COMMENT
            && jump == "DNAT"
            && [family, of_family] == [Family::of(refused_at.ip()); 2] =>
        {
            Some(OwnRule::RefusedWhileDead {
                protocol,
                refused_at,
            })
        }
        Options {
            mark: None,
            comment: Some(comment),
            jump: Some(jump),
            destination: Some(ip),
            protocol: Some(protocol),
            dport,
            to: Some(to),
            dead: None,
            portals: None,
        } if jump == "DNAT" => match dport {
            Some(port) => Some(OwnRule::Portal {
                frontend: Frontend { ip, protocol, port },
                to,
                comment,
            }),
            None if comment == NO_PORTAL_COMMENT => Some(OwnRule::NotThroughPortal {
                protocol,
                listener: ip,
                refused_at: to,
            }),
            None => None,
        },
        _ => None,
    }
}

/// The options that rules of ours are made of.
#[derive(Default)]
struct Options<'a> {
    destination: Option<IpAddr>,
    protocol: Option<Protocol>,
    dport: Option<u16>,
    comment: Option<Cow<'a, str>>,
    mark: Option<(u32, u32)>,
    jump: Option<Cow<'a, str>>,
    to: Option<SocketAddr>,
    /// Not in the set of the living.
    dead: Option<Family>,
    /// In the set of portals.
    portals: Option<Family>,
}

impl<'a> Options<'a> {
    /// None when an option occurs that no rule of ours has, or one occurs twice.
    fn read(spec: &'a str) -> Option<Self> {
        let mut options = Self::default();
        let mut words = Words::of(spec);
        while let Some(option) = words.next() {
            let value = words.next()?;
            match option.as_ref() {
                "-m" | "--match" => {
                    matches!(value.as_ref(), "tcp" | "udp" | "comment" | "mark" | "set")
                        .then_some(())?;
                }
                "!" => {
                    (value == "--match-set").then_some(())?;
                    let name = words.next()?;
                    (words.next()? == "dst").then_some(())?;
                    set(&mut options.dead, named(&name, alive_set))?;
                }
                "--match-set" => {
                    (words.next()? == "dst,dst").then_some(())?;
                    set(&mut options.portals, named(&value, portals_set))?;
                }
                "-d" | "--destination" => set(&mut options.destination, host(&value))?,
                "-p" | "--protocol" => set(&mut options.protocol, protocol(&value))?,
                "--dport" | "--destination-port" => set(&mut options.dport, value.parse().ok())?,
                "--comment" => set(&mut options.comment, Some(value))?,
                "--mark" => set(&mut options.mark, mark(&value))?,
                "-j" | "--jump" => set(&mut options.jump, Some(value))?,
                "--to-destination" => set(&mut options.to, value.parse().ok())?,
                _ => return None,
            }
        }
        Some(options)
    }
}

fn set<T>(option: &mut Option<T>, value: Option<T>) -> Option<()> {
    if option.is_some() {
        return None;
    }
    *option = Some(value?);
    Some(())
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

fn single_bit(value: u32) -> Option<Mark> {
    if value.is_power_of_two() {
        Mark::new(u8::try_from(value.trailing_zeros()).ok()?)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTAL: &str = r#"-d 10.96.10.1/32 -p tcp -m comment --comment "default/web:http" -m tcp --dport 80 -j DNAT --to-destination 169.254.96.16:20007"#;

    #[test]
    fn a_rule_is_recognised_in_whatever_order_and_spelling() {
        let same = "-p 6 -m tcp --destination-port 80 -j DNAT --to-destination 169.254.96.16:20007 \
                    -m comment --comment default/web:http --destination 10.96.10.1";
        assert!(recognise(PORTAL).is_some());
        assert_eq!(recognise(same), recognise(PORTAL));
        let masked = PORTAL.replace("/32", "/255.255.255.255");
        assert_eq!(recognise(&masked), recognise(PORTAL));
    }

    #[test]
    fn a_rule_with_anything_added_or_changed_is_a_strangers() {
        for stranger in [
            PORTAL.replace("-p tcp", "! -p tcp"),
            PORTAL.replace("-p tcp", "-p sctp"),
            PORTAL.replace("/32", "/24"),
            PORTAL.replace("-j DNAT", "-g DNAT"),
            PORTAL.replace("--dport 80", "--dport 80:90"),
            format!("{PORTAL} --random"),
            format!("{PORTAL} --persistent x"),
            format!("-s 10.0.0.1/32 {PORTAL}"),
            format!("-p tcp {PORTAL}"),
            "-j RETURN".to_owned(),
            String::new(),
        ] {
            assert_eq!(recognise(&stranger), None, "{stranger}");
        }
    }

    #[test]
    fn fixed_rules_are_recognised_by_content_and_comment() {
        for gate in [Gate::None, Gate::KubeProxy, Gate::Refuse] {
            let rules = Ruleset::new("fd00:ed6e::1".parse().unwrap(), 20008, Mark::AGENT);
            check_recognised(&rules.gated(gate));
        }
    }

    fn check_recognised(rules: &Ruleset) {
        for rule in fixed_rules(rules) {
            let text = rule.to_string();
            assert_eq!(recognise(&text), Some(rule));
            assert_eq!(recognise(&text.replace("edgemesh:", "other:")), None);
        }
    }
}

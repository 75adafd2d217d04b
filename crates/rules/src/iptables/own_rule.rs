//! The rules of our portal chains: what they are, how they are written, how they are
//! recognised.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use ipnet::IpNet;

use crate::chain_names::{OwnChain, SERVICE_PREFIX};
use crate::gate::{alive_set, portals_set};
use crate::iptables::options::{Options, last_bits};
use crate::iptables::service_chain::{PortalTarget, target};
use crate::{Bucket, Family, Gate, Mark, PortalLayout, PortalRule, Ruleset};

const OWN_TRAFFIC_COMMENT: &str = "edgemesh: the agent's own traffic";
const NO_PORTAL_COMMENT: &str = "edgemesh: not through a portal";
const NO_PORT_COMMENT: &str = "edgemesh: no port of that ClusterIP";
const PASSED_COMMENT: &str = "edgemesh: for no portal";
const MARKED_COMMENT: &str = "edgemesh: through a portal";
const LET_PASS_COMMENT: &str = "edgemesh: let pass as behind kube-proxy";
const NOT_LET_PASS_COMMENT: &str = "edgemesh: from a pod here";
const LEFT_COMMENT: &str = "edgemesh: kube-proxy's while no agent lives";
const REFUSED_COMMENT: &str = "edgemesh: refused while no agent lives";
const RULE_TO_COME_COMMENT: &str = "edgemesh: a portal whose own rule is still to come";

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
    /// A process of the host that only a last-resort route leads to a portal's address, and
    /// that asks for a port which is none, is refused: the packet would go round `lo` otherwise.
    /// Only those routes have the `source`, the intercept address. While no agent lives it is
    /// kube-proxy's matter.
    NoPort {
        protocol: Protocol,
        source: IpAddr,
        refused_at: SocketAddr,
    },
    /// What is for no portal doesn't go through the list of them.
    ForNoPortal(Family),
    /// While no agent lives, all goes on to kube-proxy.
    LeftWhileDead(Family),
    /// While no agent lives, what is meant for a portal is refused.
    RefusedWhileDead {
        protocol: Protocol,
        refused_at: SocketAddr,
    },
    /// What goes through a portal is marked, for it may have to be masqueraded.
    ThroughPortal,
    /// Who comes from elsewhere passes a FORWARD chain that drops by default: kube-proxy lets
    /// pass what has the mark of its masquerading (KUBE-FORWARD in kubernetes
    /// `pkg/proxy/iptables/proxier.go`), and would have marked this. A rule of our own would have
    /// to stand in FORWARD, where every packet pays for it.
    LetPass,
    /// It does not mark what pods begin; the network plugin knows about that.
    NotLetPass(IpNet),
    /// What is for an address with these last bits goes to the chain of such portals.
    ByAddress(Family, Bucket),
    /// A TCP connection to a portal that has no rule among many yet goes to the agent, which knows
    /// the portal by then: with iptables, a rule more takes the longer the more there are.
    RuleToCome { agent: SocketAddr },
    /// A portal's traffic goes to the agent, or to endpoints.
    Portal {
        frontend: Frontend,
        to: PortalTarget,
        comment: Cow<'a, str>,
    },
}

/// The rules that stand first in a chain, in their order.
pub(crate) fn fixed_rules(rules: &Ruleset, chain: OwnChain) -> Vec<OwnRule<'static>> {
    const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
    let refused_at = rules.refused_at();
    let mut fixed = vec![OwnRule::OwnTraffic(rules.mark())];
    fixed.extend(PROTOCOLS.map(|protocol| OwnRule::NotThroughPortal {
        protocol,
        listener: rules.intercept(),
        refused_at,
    }));
    let extensions = rules.extensions();
    if extensions.portal_set {
        if chain == OwnChain::Host && !rules.leaves_ports() && rules.gate() != Gate::None {
            fixed.extend(PROTOCOLS.map(|protocol| OwnRule::NoPort {
                protocol,
                source: rules.intercept(),
                refused_at,
            }));
        }
        fixed.push(OwnRule::ForNoPortal(rules.family()));
    }
    match rules.gate() {
        Gate::None => {}
        Gate::KubeProxy => fixed.push(OwnRule::LeftWhileDead(rules.family())),
        Gate::Refuse => fixed.extend(PROTOCOLS.map(|protocol| OwnRule::RefusedWhileDead {
            protocol,
            refused_at,
        })),
    }
    if extensions.portal_set && extensions.kernel_path {
        fixed.push(OwnRule::ThroughPortal);
        match chain {
            OwnChain::Container => fixed.extend(let_pass(rules)),
            // What the host itself begins never comes by FORWARD.
            OwnChain::Host => {}
        }
    }
    fixed
}

fn let_pass(rules: &Ruleset) -> Vec<OwnRule<'static>> {
    // As with masquerading: without the pods' networks nobody knows who is from elsewhere.
    if rules.gate() != Gate::KubeProxy || rules.pods().is_empty() {
        return Vec::new();
    }
    let pods = rules.pods().iter().copied();
    let not = pods.map(OwnRule::NotLetPass);
    [OwnRule::LetPass].into_iter().chain(not).collect()
}

/// The rules of a hook's chain that are no portal's, in their order: the fixed ones, and those
/// by which the layout leads on.
pub(crate) fn entry_rules(rules: &Ruleset, chain: OwnChain) -> Vec<OwnRule<'static>> {
    let mut entry = fixed_rules(rules, chain);
    entry.extend(layout_rules(rules, rules.layout()));
    entry
}

/// The rules that lead to the chains of the portals, where these have chains of their own, and
/// what becomes of a portal that is in none of them.
pub(crate) fn layout_rules(
    rules: &Ruleset,
    layout: PortalLayout,
) -> impl Iterator<Item = OwnRule<'static>> + use<> {
    let family = rules.family();
    let rule_to_come = match layout {
        // Without the set nobody could tell what is for a portal.
        PortalLayout::ByAddress if rules.extensions().portal_set => rules.tcp_forwarded_at(),
        PortalLayout::ByAddress | PortalLayout::InBoth => None,
    };
    layout
        .buckets()
        .map(move |bucket| OwnRule::ByAddress(family, bucket))
        .chain(rule_to_come.map(|agent| OwnRule::RuleToCome { agent }))
}

/// The rule of one portal.
pub(crate) fn portal_rule<'a>(
    rules: &Ruleset,
    frontend: &Frontend,
    rule: &'a PortalRule,
) -> OwnRule<'a> {
    OwnRule::Portal {
        frontend: *frontend,
        to: target(rules, frontend, rule),
        comment: Cow::Borrowed(rule.comment.as_str()),
    }
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
            OwnRule::NoPort {
                protocol,
                source,
                refused_at,
            } => {
                let family = Family::of(*source);
                write!(
                    f,
                    "-s {source}/{} -p {protocol} -m set --match-set {} dst \
                     -m set ! --match-set {} dst,dst -m comment --comment \"{NO_PORT_COMMENT}\" \
                     -j DNAT --to-destination {refused_at}",
                    family.host_prefix(),
                    alive_set(family).name,
                    portals_set(family).name
                )
            }
            OwnRule::ForNoPortal(family) => write!(
                f,
                "-m set ! --match-set {} dst,dst -m comment --comment \"{PASSED_COMMENT}\" \
                 -j RETURN",
                portals_set(*family).name
            ),
            OwnRule::ThroughPortal => write!(
                f,
                "-m comment --comment \"{MARKED_COMMENT}\" -j MARK --set-xmark {mark}/{mark}",
                mark = Mark::PORTAL
            ),
            OwnRule::LetPass => write!(
                f,
                "-m comment --comment \"{LET_PASS_COMMENT}\" -j MARK --set-xmark {mark}/{mark}",
                mark = Mark::KUBE_PROXY
            ),
            OwnRule::NotLetPass(pods) => write!(
                f,
                "-s {pods} -m comment --comment \"{NOT_LET_PASS_COMMENT}\" \
                 -j MARK --set-xmark 0x0/{}",
                Mark::KUBE_PROXY
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
            OwnRule::ByAddress(family, bucket) => write!(
                f,
                "-d {}/{} -j {bucket}",
                last_bits(*family, bucket.bits()),
                last_bits(*family, Bucket::MASK)
            ),
            OwnRule::RuleToCome { agent } => write!(
                f,
                "-p tcp -m comment --comment \"{RULE_TO_COME_COMMENT}\" -j DNAT \
                 --to-destination {agent}"
            ),
            OwnRule::Portal {
                frontend,
                to,
                comment,
            } => {
                write!(
                    f,
                    "-d {}/{} -p {protocol} -m comment --comment \"{comment}\" -m {protocol} \
                     --dport {} -j ",
                    frontend.ip,
                    Family::of(frontend.ip).host_prefix(),
                    frontend.port,
                    protocol = frontend.protocol,
                )?;
                match to {
                    PortalTarget::Address(to) => write!(f, "DNAT --to-destination {to}"),
                    PortalTarget::Chain(chain) => f.write_str(chain),
                }
            }
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
    let options = Options::read(spec)?;
    let rule = likely(&options)?;
    let text = rule.to_string();
    (text == spec || Options::read(&text)? == options).then_some(rule)
}

/// The rule that these options are, unless there are more or fewer of them than it has.
fn likely<'a>(options: &Options<'a>) -> Option<OwnRule<'a>> {
    if let Some((family, bucket)) = options.bucket {
        return Some(OwnRule::ByAddress(family, bucket));
    }
    match options.comment.as_deref()? {
        OWN_TRAFFIC_COMMENT => Some(OwnRule::OwnTraffic(single_bit(options.mark?.0)?)),
        NO_PORT_COMMENT => Some(OwnRule::NoPort {
            protocol: options.protocol?,
            source: options.source?.addr(),
            refused_at: options.to?,
        }),
        PASSED_COMMENT => Some(OwnRule::ForNoPortal(options.no_portal?)),
        MARKED_COMMENT => Some(OwnRule::ThroughPortal),
        LET_PASS_COMMENT => Some(OwnRule::LetPass),
        NOT_LET_PASS_COMMENT => Some(OwnRule::NotLetPass(options.source?)),
        LEFT_COMMENT => Some(OwnRule::LeftWhileDead(options.dead?)),
        REFUSED_COMMENT => Some(OwnRule::RefusedWhileDead {
            protocol: options.protocol?,
            refused_at: options.to?,
        }),
        RULE_TO_COME_COMMENT => Some(OwnRule::RuleToCome { agent: options.to? }),
        NO_PORTAL_COMMENT => Some(OwnRule::NotThroughPortal {
            protocol: options.protocol?,
            listener: options.destination?,
            refused_at: options.to?,
        }),
        _ => Some(OwnRule::Portal {
            frontend: Frontend {
                ip: options.destination?,
                protocol: options.protocol?,
                port: options.dport?,
            },
            to: match options.jump.as_deref()? {
                "DNAT" => PortalTarget::Address(options.to?),
                chain if chain.starts_with(SERVICE_PREFIX) => PortalTarget::Chain(chain.to_owned()),
                _ => return None,
            },
            comment: options.comment.clone()?,
        }),
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
            let pods = ["fd00:244:1::/64", "fd00:244:2::1/128"].map(|net| net.parse().unwrap());
            let rules = rules.gated(gate).with_pods(pods).forwarding_tcp_at(20007);
            check_recognised(&rules.laid_out(PortalLayout::ByAddress));
        }
    }

    fn check_recognised(rules: &Ruleset) {
        for chain in OwnChain::BOTH {
            for rule in entry_rules(rules, chain) {
                let text = rule.to_string();
                let is_marked = text.contains("edgemesh:");
                assert_eq!(is_marked, !matches!(rule, OwnRule::ByAddress(..)), "{text}");
                assert_eq!(recognise(&text), Some(rule));
                if is_marked {
                    assert_eq!(recognise(&text.replace("edgemesh:", "other:")), None);
                }
            }
        }
    }
}

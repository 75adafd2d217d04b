//! The rules of `EDGEMESH-POSTROUTING`: whom an endpoint must not see, so that its answers
//! come back.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Family, Mark, Ruleset};

/// How many rules stand before those about pods that reach themselves, which come and go.
pub(crate) const BEFORE_HAIRPINS: usize = 3;

/// A rule of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MasqueradeRule {
    /// What came through no portal of ours is nothing to us.
    NotThroughPortal,
    /// The mark stays within the host, and so does kube-proxy's where we set it: on a tunnel's
    /// outer packet it would have that one masqueraded, too (kubernetes
    /// `pkg/proxy/iptables/proxier.go`, about flannel's VXLAN).
    TakeOffMark,
    /// What the host sends to itself, to the agent above all, answers itself.
    StaysHere,
    /// A pod would take an answer to a packet of its own address for itself.
    Hairpin { pod: IpAddr, random_fully: bool },
    /// The host's own address on the way to the ClusterIP need not be the one on the way to
    /// the endpoint, or one that the endpoint's node has a route to.
    FromHost { random_fully: bool },
    /// Pods of this node are answered where they are.
    FromPods(IpNet),
    /// Answers to whoever else came this way must come back here.
    FromElsewhere { random_fully: bool },
}

/// The rules of the chain, in their order.
pub(crate) fn masquerade_rules(rules: &Ruleset) -> Vec<MasqueradeRule> {
    let random_fully = rules.extensions().random_fully;
    let mut chain = vec![
        MasqueradeRule::NotThroughPortal,
        MasqueradeRule::TakeOffMark,
        MasqueradeRule::StaysHere,
    ];
    chain.extend(rules.hairpins().map(|pod| hairpin(rules, pod)));
    chain.push(MasqueradeRule::FromHost { random_fully });
    chain.extend(rules.pods().iter().copied().map(MasqueradeRule::FromPods));
    // Without them nobody knows who comes from elsewhere.
    if !rules.pods().is_empty() {
        chain.push(MasqueradeRule::FromElsewhere { random_fully });
    }
    chain
}

/// The rule about a pod that reaches itself.
pub(crate) fn hairpin(rules: &Ruleset, pod: IpAddr) -> MasqueradeRule {
    MasqueradeRule::Hairpin {
        pod,
        random_fully: rules.extensions().random_fully,
    }
}

/// The rule as iptables-save writes it, without the chain.
impl fmt::Display for MasqueradeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = Mark::PORTAL;
        let masquerade = |f: &mut fmt::Formatter<'_>, random_fully: bool| {
            f.write_str("-j MASQUERADE")?;
            match random_fully {
                true => f.write_str(" --random-fully"),
                false => Ok(()),
            }
        };
        match self {
            MasqueradeRule::NotThroughPortal => write!(
                f,
                "-m mark ! --mark {mark}/{mark} -m comment --comment \
                 \"edgemesh: came through no portal\" -j RETURN"
            ),
            MasqueradeRule::TakeOffMark => write!(
                f,
                "-m comment --comment \"edgemesh: the mark stays within the host\" \
                 -j MARK --set-xmark 0x0/{:#x}",
                mark.value() | Mark::KUBE_PROXY.value()
            ),
            MasqueradeRule::StaysHere => f.write_str(
                "-m addrtype --dst-type LOCAL -m comment --comment \
                 \"edgemesh: stays on this host\" -j RETURN",
            ),
            MasqueradeRule::Hairpin { pod, random_fully } => {
                let prefix = Family::of(*pod).host_prefix();
                write!(
                    f,
                    "-s {pod}/{prefix} -d {pod}/{prefix} -m comment --comment \
                     \"edgemesh: a pod reaches itself\" "
                )?;
                masquerade(f, *random_fully)
            }
            MasqueradeRule::FromHost { random_fully } => {
                f.write_str(
                    "-m addrtype --src-type LOCAL -m comment --comment \
                     \"edgemesh: from this host\" ",
                )?;
                masquerade(f, *random_fully)
            }
            MasqueradeRule::FromPods(network) => write!(
                f,
                "-s {network} -m comment --comment \"edgemesh: from a pod here\" -j RETURN"
            ),
            MasqueradeRule::FromElsewhere { random_fully } => {
                f.write_str("-m comment --comment \"edgemesh: from elsewhere\" ")?;
                masquerade(f, *random_fully)
            }
        }
    }
}

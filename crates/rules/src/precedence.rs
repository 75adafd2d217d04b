//! Whether our jump stands where it must, and where to put it if not.
//!
//! It must stand before the jump to `KUBE-SERVICES`, and that is all: others insist on the
//! first place too (Calico, Weave), and two who insist fight forever. So nothing is done
//! as long as exactly one jump of ours stands somewhere before kube-proxy's.

use std::fmt;

use crate::iptables::parse::{HookRule, Leads};

/// What is wrong with our jump in a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misplacement {
    /// There is none.
    Missing,
    /// It stands behind the jump to `KUBE-SERVICES`, which therefore takes all traffic.
    BehindKubeServices,
    /// There are several.
    Duplicated,
    /// A rule leads into a chain of ours otherwise than our jump does: under a
    /// condition, with another comment, or from the wrong hook.
    Altered,
}

impl fmt::Display for Misplacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misplacement::Missing => "missing",
            Misplacement::BehindKubeServices => "behind the jump to KUBE-SERVICES",
            Misplacement::Duplicated => "there more than once",
            Misplacement::Altered => "altered",
        })
    }
}

/// How to set a hook right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Correction<'a> {
    /// What is wrong.
    pub(crate) because: Misplacement,
    /// The rules to delete, in their order, by their text. They are deleted by text and
    /// not by place, for somebody else may move the places meanwhile.
    pub(crate) delete: Vec<&'a str>,
    /// The place, counted from 1, at which to insert our jump after that.
    pub(crate) insert_at: usize,
}

/// What has to be done about a hook; none when it is right.
///
/// All jumps of ours are replaced by one: of several with the same text only the first
/// can be deleted, which may be the one that stands right.
pub(crate) fn correction<'a>(hook: &[HookRule<'a>]) -> Option<Correction<'a>> {
    let kube_services = hook
        .iter()
        .position(|rule| rule.leads == Leads::KubeServices);
    let because = misplacement(hook, kube_services)?;
    let foreign_before_kube = hook
        .iter()
        .take(kube_services.unwrap_or(0))
        .filter(|rule| !rule.leads.to_us())
        .count();
    Some(Correction {
        because,
        delete: own_jumps(hook).collect(),
        insert_at: foreign_before_kube + 1,
    })
}

/// The texts of all rules of a hook that lead into a chain of ours.
pub(crate) fn own_jumps<'h, 'a>(
    hook: &'h [HookRule<'a>],
) -> impl Iterator<Item = &'a str> + use<'h, 'a> {
    hook.iter()
        .filter(|rule| rule.leads.to_us())
        .map(|rule| rule.spec)
}

fn misplacement(hook: &[HookRule<'_>], kube_services: Option<usize>) -> Option<Misplacement> {
    let places = |leads| {
        hook.iter()
            .enumerate()
            .filter(move |(_, rule)| rule.leads == leads)
            .map(|(place, _)| place)
    };
    if places(Leads::OursAltered).next().is_some() {
        return Some(Misplacement::Altered);
    }
    let mut ours = places(Leads::Ours);
    let Some(first) = ours.next() else {
        return Some(Misplacement::Missing);
    };
    if ours.next().is_some() {
        return Some(Misplacement::Duplicated);
    }
    kube_services
        .is_some_and(|kube| kube < first)
        .then_some(Misplacement::BehindKubeServices)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `o` ours, `a` ours altered, `k` KUBE-SERVICES, `x` something else.
    fn hook(rules: &'static str) -> Vec<HookRule<'static>> {
        rules
            .char_indices()
            .map(|(at, c)| HookRule {
                spec: &rules[at..=at],
                leads: match c {
                    'o' => Leads::Ours,
                    'a' => Leads::OursAltered,
                    'k' => Leads::KubeServices,
                    _ => Leads::Elsewhere,
                },
            })
            .collect()
    }

    fn corrected(rules: &'static str) -> Option<(Misplacement, usize, usize)> {
        correction(&hook(rules)).map(|c| (c.because, c.delete.len(), c.insert_at))
    }

    #[test]
    fn anywhere_before_kube_services_is_right_and_first_place_is_not_fought_for() {
        for right in ["o", "ok", "xok", "oxk", "xoxkx", "xo", "okk"] {
            assert_eq!(corrected(right), None, "{right}");
        }
    }

    #[test]
    fn a_missing_jump_is_put_directly_before_kube_services() {
        assert_eq!(corrected("k"), Some((Misplacement::Missing, 0, 1)));
        assert_eq!(corrected("xxkx"), Some((Misplacement::Missing, 0, 3)));
    }

    #[test]
    fn without_kube_proxy_it_is_put_first() {
        assert_eq!(corrected(""), Some((Misplacement::Missing, 0, 1)));
        assert_eq!(corrected("xx"), Some((Misplacement::Missing, 0, 1)));
    }

    #[test]
    fn behind_kube_services_it_is_moved() {
        let moved = Misplacement::BehindKubeServices;
        assert_eq!(corrected("ko"), Some((moved, 1, 1)));
        assert_eq!(corrected("xkxo"), Some((moved, 1, 2)));
    }

    #[test]
    fn duplicates_and_alterations_are_replaced_by_one() {
        assert_eq!(corrected("oxok"), Some((Misplacement::Duplicated, 2, 2)));
        assert_eq!(corrected("oko"), Some((Misplacement::Duplicated, 2, 1)));
        assert_eq!(corrected("xoak"), Some((Misplacement::Altered, 2, 2)));
        assert_eq!(corrected("ka"), Some((Misplacement::Altered, 1, 1)));
    }
}

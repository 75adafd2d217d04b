//! Which of the two iptables to use: the one that kube-proxy uses. Pure.
//!
//! iptables-nft and iptables-legacy don't see each other's rules, so that precedence over
//! kube-proxy can be had in its own flavour only. kube-proxy and kubelet leave chains by
//! which it can be told.

use std::fmt;

use crate::Family;

/// One of the two iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flavour {
    /// iptables-nft: the rules live in nf_tables.
    Nft,
    /// iptables-legacy: the rules live in x_tables.
    Legacy,
}

impl Flavour {
    /// Both, the preferred one first.
    pub const BOTH: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Flavour::Nft => Flavour::Legacy,
            Flavour::Legacy => Flavour::Nft,
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Nft => "nft",
            Flavour::Legacy => "legacy",
        })
    }
}

/// What the operator says about the flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlavourSetting {
    /// The one that kube-proxy or kubelet uses; nft when neither left a trace.
    #[default]
    Auto,
    /// This one, whatever is found.
    Fixed(Flavour),
}

/// Chains by which kube-proxy's and kubelet's flavour can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hint {
    /// kubelet's, in every mode (kubernetes `pkg/kubelet/kubelet_network_linux.go`).
    KubeletCanary,
    /// kubelet's, made for this very purpose (KEP-3178).
    KubeletMark,
    /// kube-proxy's, there while it runs (kubernetes `pkg/proxy/iptables/proxier.go`).
    KubeProxyCanary,
    /// kube-proxy's entry chain: what we must stand before.
    KubeServices,
}

impl Hint {
    /// All, the weightiest first.
    pub(crate) const ALL: [Hint; 4] = [
        Hint::KubeServices,
        Hint::KubeProxyCanary,
        Hint::KubeletMark,
        Hint::KubeletCanary,
    ];

    pub(crate) fn chain(self) -> &'static str {
        match self {
            Hint::KubeletCanary => "KUBE-KUBELET-CANARY",
            Hint::KubeletMark => "KUBE-IPTABLES-HINT",
            Hint::KubeProxyCanary => "KUBE-PROXY-CANARY",
            Hint::KubeServices => crate::KUBE_SERVICES,
        }
    }

    /// The table to look for it in.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Hint::KubeServices => "nat",
            Hint::KubeletCanary | Hint::KubeletMark | Hint::KubeProxyCanary => "mangle",
        }
    }
}

/// What was found in one family, the weightiest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) nft: Vec<Hint>,
    pub(crate) legacy: Vec<Hint>,
}

impl Traces {
    pub(crate) fn is_empty(&self) -> bool {
        self.nft.is_empty() && self.legacy.is_empty()
    }

    fn of(&self, flavour: Flavour) -> &[Hint] {
        match flavour {
            Flavour::Nft => &self.nft,
            Flavour::Legacy => &self.legacy,
        }
    }
}

/// The flavour to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlavourChoice {
    /// The flavour.
    pub flavour: Flavour,
    /// Why this one, as a clause that ends a sentence.
    pub reason: String,
}

impl fmt::Display for FlavourChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.flavour, self.reason)
    }
}

/// There is no iptables to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFlavour {
    /// None is installed.
    #[error(
        "no {tool} is installed (looked for {tool}-nft-restore, {tool}-legacy-restore and \
         {tool}-restore, each with its -save, in PATH, /usr/sbin, /sbin and \
         /usr/local/sbin); install the package iptables",
        tool = .0.tool()
    )]
    NotInstalled(Family),
    /// The one that the operator wants is not.
    #[error(
        "the configuration wants the {flavour} flavour, but {tool}-{flavour}-restore and \
         {tool}-{flavour}-save are not installed; install the package iptables, or let the \
         agent choose (auto)",
        tool = .family.tool()
    )]
    WantedNotInstalled {
        /// The family.
        family: Family,
        /// The flavour.
        flavour: Flavour,
    },
}

/// Chooses for `family`. `own` and `other` are what was found in this family and in the
/// other: a cluster of one family leaves kube-proxy's chains in that one only.
pub(crate) fn choose(
    family: Family,
    setting: FlavourSetting,
    installed: &[Flavour],
    own: &Traces,
    other: &Traces,
) -> Result<FlavourChoice, NoFlavour> {
    let chosen = |flavour, reason| Ok(FlavourChoice { flavour, reason });
    if let FlavourSetting::Fixed(flavour) = setting {
        return if installed.contains(&flavour) {
            chosen(flavour, "the configuration says so".to_owned())
        } else {
            Err(NoFlavour::WantedNotInstalled { family, flavour })
        };
    }
    match installed {
        [] => return Err(NoFlavour::NotInstalled(family)),
        [only] => {
            return chosen(*only, format!("no other {} is installed", family.tool()));
        }
        _ => {}
    }
    let seen = weightiest(own)
        .map(|seen| (seen, family))
        .or_else(|| weightiest(other).map(|seen| (seen, family.other())));
    match seen {
        Some(((flavour, hint), family)) => chosen(
            flavour,
            format!("{} is in its {family} {} table", hint.chain(), hint.table()),
        ),
        None => chosen(
            Flavour::Nft,
            "neither kube-proxy nor kubelet left a trace in either flavour".to_owned(),
        ),
    }
}

/// The flavour with the weightiest hint. With the same on both sides (one of them left
/// over from before a change) the next hints decide, at last the order of preference.
fn weightiest(traces: &Traces) -> Option<(Flavour, Hint)> {
    Hint::ALL
        .into_iter()
        .find_map(|hint| {
            let mut with = Flavour::BOTH
                .into_iter()
                .filter(|&flavour| traces.of(flavour).contains(&hint));
            match (with.next(), with.next()) {
                (Some(only), None) => Some((only, strongest(traces.of(only))?)),
                (Some(_), Some(_)) | (None, _) => None,
            }
        })
        .or_else(|| Some((Flavour::Nft, strongest(&traces.nft)?)))
}

fn strongest(hints: &[Hint]) -> Option<Hint> {
    hints.iter().copied().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[Flavour] = &Flavour::BOTH;

    fn traces(nft: &[Hint], legacy: &[Hint]) -> Traces {
        Traces {
            nft: nft.to_vec(),
            legacy: legacy.to_vec(),
        }
    }

    fn auto(installed: &[Flavour], own: &Traces, other: &Traces) -> (Flavour, String) {
        let choice = choose(Family::V4, FlavourSetting::Auto, installed, own, other).unwrap();
        (choice.flavour, choice.reason)
    }

    #[test]
    fn kube_proxys_own_chain_weighs_more_than_kubelets_hints() {
        let own = traces(
            &[Hint::KubeletMark, Hint::KubeletCanary],
            &[Hint::KubeServices],
        );
        assert_eq!(
            auto(BOTH, &own, &Traces::default()),
            (
                Flavour::Legacy,
                "KUBE-SERVICES is in its IPv4 nat table".to_owned()
            )
        );
    }

    #[test]
    fn kubelets_hint_decides_between_kube_proxys_chains_in_both() {
        let own = traces(
            &[Hint::KubeServices],
            &[Hint::KubeServices, Hint::KubeletMark],
        );
        assert_eq!(auto(BOTH, &own, &Traces::default()).0, Flavour::Legacy);
        let same = traces(&[Hint::KubeServices], &[Hint::KubeServices]);
        assert_eq!(auto(BOTH, &same, &Traces::default()).0, Flavour::Nft);
    }

    #[test]
    fn a_single_family_cluster_decides_for_both_families() {
        let other = traces(&[], &[Hint::KubeProxyCanary]);
        assert_eq!(
            auto(BOTH, &Traces::default(), &other),
            (
                Flavour::Legacy,
                "KUBE-PROXY-CANARY is in its IPv6 mangle table".to_owned()
            )
        );
    }

    #[test]
    fn without_a_trace_it_is_nft() {
        let none = Traces::default();
        assert_eq!(auto(BOTH, &none, &none).0, Flavour::Nft);
    }

    #[test]
    fn the_only_one_installed_is_used_whatever_is_found() {
        let own = traces(&[Hint::KubeServices], &[]);
        assert_eq!(
            auto(&[Flavour::Legacy], &own, &Traces::default()),
            (Flavour::Legacy, "no other iptables is installed".to_owned())
        );
    }

    #[test]
    fn nothing_installed_says_what_to_install() {
        let none = Traces::default();
        let missing = choose(Family::V6, FlavourSetting::Auto, &[], &none, &none).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "no ip6tables is installed (looked for ip6tables-nft-restore, \
             ip6tables-legacy-restore and ip6tables-restore, each with its -save, in PATH, \
             /usr/sbin, /sbin and /usr/local/sbin); install the package iptables"
        );
        let fixed = FlavourSetting::Fixed(Flavour::Legacy);
        let missing = choose(Family::V4, fixed, &[Flavour::Nft], &none, &none).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "the configuration wants the legacy flavour, but iptables-legacy-restore and \
             iptables-legacy-save are not installed; install the package iptables, or let \
             the agent choose (auto)"
        );
    }

    #[test]
    fn the_operators_word_outweighs_all() {
        let own = traces(&[Hint::KubeServices], &[]);
        let fixed = FlavourSetting::Fixed(Flavour::Legacy);
        let choice = choose(Family::V4, fixed, BOTH, &own, &Traces::default()).unwrap();
        assert_eq!(choice.to_string(), "legacy: the configuration says so");
    }
}

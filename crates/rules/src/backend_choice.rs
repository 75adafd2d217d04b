//! Which way the rules go into the kernel, and why. Pure.

use std::fmt;

use crate::{Family, Flavour, FlavourChoice, FlavourSetting, NoFlavour};

/// What the operator says about the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendSetting {
    /// The one that kube-proxy uses: nftables where it runs in nftables mode, and where
    /// there is no iptables; else iptables, in this flavour.
    Auto(FlavourSetting),
    /// iptables, whatever is found.
    Iptables(FlavourSetting),
    /// nftables, whatever is found.
    Nftables,
}

impl Default for BackendSetting {
    fn default() -> Self {
        Self::Auto(FlavourSetting::Auto)
    }
}

/// A way into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendKind {
    /// Chains in the nat table of iptables, before kube-proxy's by the place of a jump.
    Iptables(Flavour),
    /// A table of our own, before everybody's by its priority.
    Nftables,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendKind::Iptables(flavour) => write!(f, "iptables-{flavour}"),
            BackendKind::Nftables => f.write_str("nftables"),
        }
    }
}

/// The way in use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendChoice {
    /// The way.
    pub kind: BackendKind,
    /// Why this one, as a clause that ends a sentence.
    pub reason: String,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.reason)
    }
}

impl From<FlavourChoice> for BackendChoice {
    fn from(choice: FlavourChoice) -> Self {
        Self {
            kind: BackendKind::Iptables(choice.flavour),
            reason: choice.reason,
        }
    }
}

/// What tells kube-proxy's mode, seen from one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    /// kube-proxy's table of nftables mode is there, in this family.
    pub(crate) nftables_mode: bool,
    /// The same of the other family: a cluster of one family leaves it in that one only.
    pub(crate) nftables_mode_in_other: bool,
    /// `KUBE-SERVICES` is there, in this family.
    pub(crate) iptables_mode: bool,
}

impl Signs {
    /// The family in which kube-proxy shows that it runs in nftables mode, if it does.
    ///
    /// Where it left traces of both modes, nftables is right in either case: our table
    /// stands before iptables' as well.
    pub(crate) fn nftables_mode_seen_in(self, family: Family) -> Option<Family> {
        if self.nftables_mode {
            Some(family)
        } else if self.nftables_mode_in_other && !self.iptables_mode {
            Some(family.other())
        } else {
            None
        }
    }
}

/// What to use for `family`, where the setting leaves it open.
///
/// # Errors
///
/// When kube-proxy is not in nftables mode, and the flavour of iptables that the operator
/// wants is not installed.
pub(crate) fn choose(
    family: Family,
    signs: Signs,
    iptables: Result<FlavourChoice, NoFlavour>,
) -> Result<BackendChoice, NoFlavour> {
    let nftables = |reason| {
        Ok(BackendChoice {
            kind: BackendKind::Nftables,
            reason,
        })
    };
    match (signs.nftables_mode_seen_in(family), iptables) {
        (Some(seen_in), _) => nftables(format!(
            "kube-proxy runs in nftables mode (it has the table {} kube-proxy)",
            seen_in.nft_name()
        )),
        (None, Ok(choice)) => Ok(choice.into()),
        (None, Err(NoFlavour::NotInstalled(_))) => {
            nftables(format!("no {} is installed", family.tool()))
        }
        (None, Err(error @ NoFlavour::WantedNotInstalled { .. })) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(signs: Signs) -> String {
        let iptables = FlavourChoice {
            flavour: Flavour::Legacy,
            reason: "because".to_owned(),
        };
        choose(Family::V6, signs, Ok(iptables)).unwrap().to_string()
    }

    #[test]
    fn kube_proxys_mode_decides() {
        let [mut seen_here, mut seen_in_other] = [Signs::default(); 2];
        seen_here.nftables_mode = true;
        seen_in_other.nftables_mode_in_other = true;
        assert_eq!(chosen(Signs::default()), "iptables-legacy: because");
        assert_eq!(
            chosen(seen_here),
            "nftables: kube-proxy runs in nftables mode (it has the table ip6 kube-proxy)"
        );
        assert_eq!(
            chosen(seen_in_other),
            "nftables: kube-proxy runs in nftables mode (it has the table ip kube-proxy)"
        );
    }

    #[test]
    fn traces_of_both_modes_are_served_by_nftables_which_stands_before_both() {
        let mut both = Signs {
            nftables_mode: true,
            iptables_mode: true,
            nftables_mode_in_other: false,
        };
        assert!(chosen(both).starts_with("nftables: "));
        (both.nftables_mode, both.nftables_mode_in_other) = (false, true);
        assert_eq!(chosen(both), "iptables-legacy: because");
    }

    #[test]
    fn without_iptables_there_is_nftables() {
        let missing = NoFlavour::NotInstalled(Family::V6);
        let choice = choose(Family::V6, Signs::default(), Err(missing)).unwrap();
        assert_eq!(choice.to_string(), "nftables: no ip6tables is installed");
        let wanted = NoFlavour::WantedNotInstalled {
            family: Family::V6,
            flavour: Flavour::Nft,
        };
        let asked = choose(Family::V6, Signs::default(), Err(wanted.clone()));
        assert_eq!(asked, Err(wanted));
    }
}

//! Which kube-proxy this node has, and by what it was recognised. Pure.

use std::fmt;

use edgemesh_rules::{Family, Flavour};

/// By what kube-proxy can be recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// What kube-proxy itself says: `GET http://127.0.0.1:10249/proxyMode`.
    pub(super) said: Option<String>,
    /// Where the chain KUBE-SERVICES is.
    pub(super) chains: Vec<(Family, Flavour)>,
    /// Whether nf_tables has the table `kube-proxy`.
    pub(super) nft_table: bool,
    /// Whether the device kube-ipvs0 is there.
    pub(super) ipvs_device: bool,
    /// Virtual services of IPVS.
    pub(super) ipvs_services: usize,
}

/// How kube-proxy works here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// By chains in iptables.
    Iptables,
    /// By virtual services of IPVS.
    Ipvs,
    /// By a table of its own in nf_tables.
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
        })
    }
}

impl Signs {
    /// The mode; none when there is no sign of a kube-proxy.
    ///
    /// Its own word counts most. In ipvs mode KUBE-SERVICES is there too, and every mode may
    /// have left traces of the one before it.
    pub(super) fn mode(&self) -> Option<Mode> {
        match self.said.as_deref().map(str::trim) {
            Some("iptables") => return Some(Mode::Iptables),
            Some("ipvs") => return Some(Mode::Ipvs),
            Some("nftables") => return Some(Mode::Nftables),
            Some(_) | None => {}
        }
        if self.nft_table {
            Some(Mode::Nftables)
        } else if self.ipvs_device || self.ipvs_services > 0 {
            Some(Mode::Ipvs)
        } else if self.chains.is_empty() {
            None
        } else {
            Some(Mode::Iptables)
        }
    }

    /// Everything that it can be recognised by, in words.
    pub(super) fn in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(said) = &self.said {
            words.push(format!("it says \"{}\" on port 10249", said.trim()));
        }
        for (family, flavour) in &self.chains {
            words.push(format!(
                "chain KUBE-SERVICES in {}-{flavour}",
                family.tool()
            ));
        }
        if self.nft_table {
            words.push("table kube-proxy in nf_tables".to_owned());
        }
        if self.ipvs_device {
            words.push("device kube-ipvs0".to_owned());
        }
        if self.ipvs_services > 0 {
            words.push(format!("{} virtual services of IPVS", self.ipvs_services));
        }
        words
    }

    /// Traces of a mode that is not the one in force.
    pub(super) fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.mode() == Some(Mode::Nftables) && !self.chains.is_empty() {
            left.push("chain KUBE-SERVICES in iptables".to_owned());
        }
        if self.mode() != Some(Mode::Nftables) && self.nft_table {
            left.push("table kube-proxy in nf_tables".to_owned());
        }
        if self.mode() != Some(Mode::Ipvs) && self.ipvs_device {
            left.push("device kube-ipvs0".to_owned());
        }
        let both = Flavour::BOTH
            .iter()
            .all(|flavour| self.chains.iter().any(|(_, found)| found == flavour));
        if both {
            left.push("chain KUBE-SERVICES in one of both flavours of iptables".to_owned());
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_recognised_by_its_own_signs_and_its_word_counts_most() {
        let chain = |flavour| vec![(Family::V4, flavour)];
        let nothing = Signs::default();
        let iptables = Signs {
            chains: chain(Flavour::Legacy),
            ..Signs::default()
        };
        let ipvs = Signs {
            ipvs_device: true,
            ..iptables.clone()
        };
        let nftables = Signs {
            nft_table: true,
            ..Signs::default()
        };
        let said = Signs {
            said: Some("iptables\n".to_owned()),
            ..nftables.clone()
        };
        for (signs, mode, left_over) in [
            (nothing, None, 0),
            (iptables, Some(Mode::Iptables), 0),
            (ipvs, Some(Mode::Ipvs), 0),
            (nftables, Some(Mode::Nftables), 0),
            (said, Some(Mode::Iptables), 1),
        ] {
            assert_eq!(signs.mode(), mode, "{signs:?}");
            assert_eq!(signs.left_over().len(), left_over, "{signs:?}");
            assert_eq!(signs.in_words().is_empty(), mode.is_none(), "{signs:?}");
        }
    }

    #[test]
    fn chains_in_both_flavours_are_left_over_in_one_of_them() {
        let signs = Signs {
            chains: vec![(Family::V4, Flavour::Nft), (Family::V4, Flavour::Legacy)],
            ..Signs::default()
        };
        assert_eq!(signs.left_over().len(), 1);
    }
}

//! What a site's router does to packets on their way out and in, as nftables rules.

use std::fmt;

/// What a router does between its site and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nat {
    /// It only routes; for sites with public addresses. Nothing is filtered.
    None,
    /// Masquerades, keeping the source port where it is free, as most home routers do: the
    /// same socket is seen at the same address and port by everybody, so that holes can be
    /// punched. As with all kinds below, only answers come in.
    PortPreserving,
    /// Masquerades with a random port for each pair of addresses (`random,fully-random`):
    /// what one peer learns of the mapping is of no use to another.
    Symmetric,
    /// As [`Self::PortPreserving`], but all UDP is dropped, in both directions.
    NoUdp,
    /// As [`Self::PortPreserving`], but only TCP to this port passes outwards, wherever it
    /// goes; everything else is dropped silently.
    OnlyTcpPort(u16),
}

impl fmt::Display for Nat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("no NAT"),
            Self::PortPreserving => formatter.write_str("port-preserving NAT"),
            Self::Symmetric => formatter.write_str("symmetric NAT"),
            Self::NoUdp => formatter.write_str("NAT without UDP"),
            Self::OnlyTcpPort(port) => write!(formatter, "NAT that only lets TCP port {port} out"),
        }
    }
}

impl Nat {
    /// The table of the router, for `nft -f`, in place of the one that is there; `inside`
    /// and `outside` are its devices.
    ///
    /// Unasked packets from outside are dropped before they reach the router's own INPUT:
    /// the kernel would remember them as connections of its own, whose port could then not
    /// be kept for a site's node that punches a hole from the same port. What the kernel can't
    /// assign to any connection it would pass on untranslated, as it is; providers drop that.
    pub(crate) fn render(self, inside: &str, outside: &str) -> String {
        let mut rules = "table ip lab-nat\ndelete table ip lab-nat\n".to_owned();
        let (masquerade, forward) = match self {
            Self::None => return rules,
            Self::PortPreserving => ("masquerade", String::new()),
            Self::Symmetric => ("masquerade random,fully-random", String::new()),
            Self::NoUdp => ("masquerade", "    meta l4proto udp drop\n".to_owned()),
            Self::OnlyTcpPort(port) => (
                "masquerade",
                format!(
                    "    iifname \"{inside}\" tcp dport != {port} drop\n    iifname \"{inside}\" meta l4proto != tcp drop\n"
                ),
            ),
        };
        rules += &format!(
            "table ip lab-nat {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{outside}\" {masquerade}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname \"{inside}\" ct state invalid drop
{forward}    iifname \"{outside}\" ct state new drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{outside}\" ct state new drop
  }}
}}
"
        );
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_masquerades_in_its_own_way_and_routing_alone_in_none() {
        let masquerade = |nat: Nat| {
            let rules = nat.render("br0", "wan");
            let line = rules.lines().find(|line| line.contains("masquerade"));
            line.map(|line| line.trim().to_owned())
        };
        let plain = Some("oifname \"wan\" masquerade".to_owned());
        assert_eq!(masquerade(Nat::None), None);
        assert_eq!(masquerade(Nat::PortPreserving), plain);
        assert_eq!(masquerade(Nat::NoUdp), plain);
        assert_eq!(masquerade(Nat::OnlyTcpPort(443)), plain);
        assert_eq!(
            masquerade(Nat::Symmetric),
            Some("oifname \"wan\" masquerade random,fully-random".to_owned())
        );
    }

    #[test]
    fn a_strict_firewall_lets_one_port_out() {
        let rules = Nat::OnlyTcpPort(443).render("br0", "wan");
        assert!(rules.contains("iifname \"br0\" tcp dport != 443 drop"));
        assert!(rules.contains("iifname \"br0\" meta l4proto != tcp drop"));
    }
}

//! What the kernel holds, read for an explanation. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    BaseChain, Family, Inspected, NatView, NftElement, OwnChain, TableFound, base_chains, inspect,
    kube_proxy_element, kube_proxy_portals, own_tables, refused_portals,
};
use tokio::time::timeout;

/// How long reading may take. Tens of thousands of rules take a second or two.
const PATIENCE: Duration = Duration::from_secs(20);

/// The table of kube-proxy's nftables mode (kubernetes `pkg/proxy/nftables/proxier.go`).
pub(crate) const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// Where all of iptables' nat rules stand, and kube-proxy's own table.
pub(super) const NAT_PRIORITY: i32 = -100;

/// What the names of the agent's own nf_tables tables begin with.
const OWN_TABLE: &str = "edgemesh";

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The nat tables of iptables, per family and flavour.
    pub(crate) nats: Vec<Inspected>,
    /// The agent's own tables in nf_tables, in the order in which the kernel asks them.
    pub(crate) tables: Vec<TableFound>,
    /// What the agent's other table refuses where nobody takes it, with the service port.
    pub(crate) refused: BTreeMap<Frontend, String>,
    /// The base chains of nf_tables, per family.
    pub(crate) chains: Vec<(Family, BaseChain)>,
    /// The virtual services of IPVS.
    pub(crate) ipvs: BTreeSet<Frontend>,
    /// What kube-proxy's own nftables table does with a portal.
    pub(crate) nft: BTreeMap<Frontend, NftElement>,
    /// The portals of that table, where they were listed.
    pub(crate) nft_portals: BTreeMap<Frontend, String>,
    /// What could not be read, and why.
    pub(crate) problems: Vec<String>,
}

impl Kernel {
    /// Reads everything that does not depend on what is asked about.
    pub(crate) async fn read() -> Self {
        let mut kernel = Self::default();
        if timeout(PATIENCE, kernel.read_tables()).await.is_err() {
            kernel.problems.push(format!(
                "reading the rules took longer than {} s and was given up",
                PATIENCE.as_secs()
            ));
        }
        kernel.ipvs = fs::read_to_string("/proc/net/ip_vs")
            .map(|text| virtual_services(&text))
            .unwrap_or_default();
        kernel
    }

    async fn read_tables(&mut self) {
        for family in Family::BOTH {
            for inspected in inspect(family).await {
                if let Err(problem) = &inspected.nat {
                    self.problems.push(problem.clone());
                }
                self.nats.push(inspected);
            }
            // A kernel without nf_tables has none of its tables and chains.
            self.tables.extend(own_tables(family).unwrap_or_default());
            self.refused
                .extend(refused_portals(family).unwrap_or_default());
            let chains = base_chains(family).unwrap_or_default();
            self.chains
                .extend(chains.into_iter().map(|chain| (family, chain)));
        }
    }

    /// Asks kube-proxy's own table about some portals, where there is such a table.
    pub(crate) async fn ask_kube_proxy(&mut self, frontends: &BTreeSet<Frontend>) {
        if !self.has_table(KUBE_PROXY_TABLE) {
            return;
        }
        for frontend in frontends {
            match kube_proxy_element(frontend).await {
                Ok(Some(element)) => {
                    self.nft.insert(*frontend, element);
                }
                Ok(None) => {}
                Err(problem) => {
                    self.problems.push(problem);
                    return;
                }
            }
        }
    }

    /// Lists the portals of kube-proxy's own table, where there is such a table: what
    /// Services there are, in case no agent tells.
    pub(crate) async fn list_kube_proxy(&mut self) {
        if !self.has_table(KUBE_PROXY_TABLE) {
            return;
        }
        for family in Family::BOTH {
            match kube_proxy_portals(family).await {
                Ok(portals) => self.nft_portals.extend(portals),
                Err(problem) => return self.problems.push(problem),
            }
        }
    }

    /// Whether nf_tables has base chains of a table of that name.
    pub(crate) fn has_table(&self, name: &str) -> bool {
        self.chains.iter().any(|(_, chain)| chain.table == name)
    }

    /// NAT chains of others that are asked before all of iptables: the first NAT wins.
    pub(crate) fn earlier_nat(&self, chain: OwnChain, family: Family) -> Vec<String> {
        let hook = chain.hook().to_lowercase();
        self.chains
            .iter()
            .filter(|(of, base)| {
                *of == family
                    && base.kind == "nat"
                    && base.hook == hook
                    && base.priority < NAT_PRIORITY
                    && !base.table.starts_with(OWN_TABLE)
            })
            .map(|(_, base)| format!("{} {} (priority {})", base.table, base.name, base.priority))
            .collect()
    }

    /// The portals that we or kube-proxy have rules for, with their service ports.
    pub(crate) fn portals(&self) -> BTreeMap<Frontend, String> {
        let in_nats = self
            .nats
            .iter()
            .filter_map(|inspected| inspected.nat.as_ref().ok())
            .flat_map(NatView::portals);
        let in_tables = self
            .tables
            .iter()
            .flat_map(|table| &table.portals)
            .map(|(frontend, element)| (frontend, element.comment.as_str()));
        let in_kube_proxys = self
            .nft_portals
            .iter()
            .map(|(frontend, name)| (frontend, name.as_str()));
        let refused = self
            .refused
            .iter()
            .map(|(frontend, name)| (frontend, name.as_str()));
        // Of a portal that several have, the nat tables' name counts, and then ours.
        in_kube_proxys
            .chain(refused)
            .chain(in_tables)
            .chain(in_nats)
            .map(|(frontend, name)| (*frontend, name.to_owned()))
            .collect()
    }
}

/// The virtual services that `/proc/net/ip_vs` lists (kernel
/// `net/netfilter/ipvs/ip_vs_ctl.c`): `TCP  0A600A01:0050 rr`,
/// `TCP  [fd00:0096:…]:0050 rr`.
fn virtual_services(text: &str) -> BTreeSet<Frontend> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let protocol = match words.next()? {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                _ => return None,
            };
            let (address, port) = words.next()?.rsplit_once(':')?;
            let ip = match address.strip_prefix('[') {
                Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
                None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
            };
            Some(Frontend {
                ip,
                protocol,
                port: u16::from_str_radix(port, 16).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_services_of_ipvs_are_read() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                    TCP  0A600A01:0050 rr\n  \
                    -> 0AF40102:1F90      Masq    1      0          0\n\
                    UDP  [fd00:0096:0000:0000:0000:0000:0000:0001]:0035 rr\n\
                    FWM  00000001 rr\n";
        let seen: Vec<String> = virtual_services(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(seen, ["10.96.10.1:80/tcp", "[fd00:96::1]:53/udp"]);
    }
}

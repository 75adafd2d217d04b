//! kube-proxy's table of nftables mode, as nft shows it.

use anyhow::{Result, ensure};
use edgemesh_lab::{Family, Place};

use crate::cluster::Port;

/// That table, of one family.
#[derive(Debug)]
pub(crate) struct KubeProxyTable(String);

impl KubeProxyTable {
    /// Reads it, without counters; fails when there is none.
    pub(crate) fn read(node: &impl Place, family: Family) -> Result<Self> {
        let family = nft_name(family);
        node.program("nft")
            .args(["--stateless", "list", "table", family, "kube-proxy"])
            .run()
            .map(Self)
    }

    /// Removes it, as a restart of the node would; fine when there is none.
    pub(crate) fn remove(node: &impl Place, family: Family) -> Result<()> {
        let family = nft_name(family);
        // nft 1.0.6 has no `destroy`: what was just made can be deleted.
        let words = format!("add table {family} kube-proxy; delete table {family} kube-proxy");
        node.program("nft").arg(words).run().map(|_| ())
    }

    /// Fails unless kube-proxy sends connections to the IPv4 service port on.
    pub(crate) fn serves(&self, port: Port) -> Result<()> {
        let protocol = if port.udp { "udp" } else { "tcp" };
        // Its map `service-ips` (kube-proxy pkg/proxy/nftables/proxier.go).
        let key = port.address.replace(':', &format!(" . {protocol} . "));
        let element = format!("{key} : goto ");
        ensure!(
            self.0.contains(&element),
            "kube-proxy has no element for {}",
            port.name
        );
        Ok(())
    }

    /// All of it, as nft writes it.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// The tables of nf_tables on a node that are the agent's.
pub(crate) fn agents_tables(node: &impl Place) -> Result<Vec<String>> {
    let listed = node.program("nft").args(["list", "tables"]).run()?;
    let tables = listed.lines().map(str::to_owned);
    Ok(tables.filter(|line| line.contains("edgemesh")).collect())
}

/// As nft calls it.
fn nft_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

//! A stand-in for kube-proxy in its iptables or nftables mode: the same tables, chains,
//! names, jumps and order of steps, for the Services it is told of. Source: kube-proxy
//! `pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`.

mod chain_names;
mod nftables;
mod render;

use anyhow::Result;

pub use chain_names::{endpoint_chain, service_chain};
pub use nftables::render_nftables;
pub use render::render;

use crate::client::Place;
use crate::iptables::{Family, Flavour, Table};
use crate::namespace::Namespace;
use crate::node::Node;
use crate::service::ClusterService;

/// How kube-proxy programs the kernel (`--proxy-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeProxyMode {
    /// By this flavour of iptables.
    Iptables(Flavour),
    /// By a table of its own in nf_tables.
    Nftables,
}

impl From<Flavour> for KubeProxyMode {
    fn from(flavour: Flavour) -> Self {
        Self::Iptables(flavour)
    }
}

/// A jump from a built-in chain to one of kube-proxy's.
struct Jump {
    table: Table,
    from: &'static str,
    to: &'static str,
    comment: &'static str,
}

impl Jump {
    const fn new(
        table: Table,
        from: &'static str,
        to: &'static str,
        comment: &'static str,
    ) -> Self {
        Self {
            table,
            from,
            to,
            comment,
        }
    }

    /// The rule's words; only new connections go through KUBE-SERVICES in filter.
    fn rule(&self) -> Vec<&'static str> {
        let mut words = match (self.table, self.to) {
            (Table::Filter, "KUBE-SERVICES") => vec!["-m", "conntrack", "--ctstate", "NEW"],
            _ => Vec::new(),
        };
        words.extend(["-m", "comment", "--comment", self.comment, "-j", self.to]);
        words
    }
}

const PORTALS: &str = "kubernetes service portals";

/// The jumps kube-proxy puts first into built-in chains, in the order it does so.
const JUMPS: [Jump; 6] = [
    Jump::new(Table::Filter, "FORWARD", "KUBE-SERVICES", PORTALS),
    Jump::new(Table::Filter, "OUTPUT", "KUBE-SERVICES", PORTALS),
    Jump::new(
        Table::Filter,
        "FORWARD",
        "KUBE-FORWARD",
        "kubernetes forwarding rules",
    ),
    Jump::new(Table::Nat, "OUTPUT", "KUBE-SERVICES", PORTALS),
    Jump::new(Table::Nat, "PREROUTING", "KUBE-SERVICES", PORTALS),
    Jump::new(
        Table::Nat,
        "POSTROUTING",
        "KUBE-POSTROUTING",
        "kubernetes postrouting rules",
    ),
];

/// What kubelet leaves for others to find the flavour by. Source: kubelet
/// `pkg/kubelet/kubelet_network_linux.go`.
const KUBELETS_SIGNS: &str =
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";

/// Chains that are there before kube-proxy's rules.
const SIGNS: &str = "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n\
                     *filter\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                     :KUBE-FORWARD - [0:0]\nCOMMIT\n\
                     *nat\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                     :KUBE-POSTROUTING - [0:0]\nCOMMIT\n";

/// Leaves on `node` what kubelet does, whether kube-proxy ever runs or not: empty chains in
/// the flavour of iptables that the node's components use.
///
/// # Errors
///
/// Those of iptables, with the command line.
pub fn leave_kubelets_signs(node: &Node, flavour: Flavour) -> Result<()> {
    for family in node.families() {
        flavour.restore(node, *family, KUBELETS_SIGNS)?;
    }
    Ok(())
}

/// The pod range of the whole cluster, which kube-proxy is told as `--cluster-cidr`:
/// traffic from elsewhere is masqueraded.
fn cluster_range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:244::/32",
    }
}

/// The stand-in on one node. It runs only when told: each call is one synchronisation.
#[derive(Debug)]
pub struct KubeProxy {
    place: Namespace,
    mode: KubeProxyMode,
    families: &'static [Family],
    services: Vec<ClusterService>,
}

impl Place for KubeProxy {
    fn namespace(&self) -> &Namespace {
        &self.place
    }
}

impl KubeProxy {
    /// Starts it on a node, in a mode or, with a [`Flavour`], in iptables mode: programs
    /// both families (IPv4 alone on a node without IPv6).
    ///
    /// # Errors
    ///
    /// Those of iptables or nft, with the command line.
    pub fn start(
        node: &Node,
        mode: impl Into<KubeProxyMode>,
        services: &[ClusterService],
    ) -> Result<Self> {
        let mut proxy = Self {
            place: node.namespace().clone(),
            mode: mode.into(),
            families: node.families(),
            services: Vec::new(),
        };
        proxy.sync(services)?;
        Ok(proxy)
    }

    /// Programs these Services instead of the ones before.
    ///
    /// # Errors
    ///
    /// Those of iptables, with the command line.
    pub fn sync(&mut self, services: &[ClusterService]) -> Result<()> {
        self.services = services.to_vec();
        self.restart()
    }

    /// What a restarted kube-proxy does, or a running one that found its chains flushed:
    /// jumps that are missing are put first, and all chains are written anew. Jumps that
    /// stand stay where they are, and so do chains that nf_tables has hooked in.
    ///
    /// # Errors
    ///
    /// Those of iptables or nft, with the command line.
    pub fn restart(&self) -> Result<()> {
        for family in self.families {
            match self.mode {
                KubeProxyMode::Iptables(flavour) => self.write_chains(flavour, *family)?,
                KubeProxyMode::Nftables => self.write_table(*family)?,
            }
        }
        Ok(())
    }

    fn write_table(&self, family: Family) -> Result<()> {
        let text = render_nftables(&self.services, family, cluster_range(family));
        self.program("nft").args(["-f", "-"]).input(text).run()?;
        Ok(())
    }

    fn write_chains(&self, flavour: Flavour, family: Family) -> Result<()> {
        flavour.restore(self, family, SIGNS)?;
        for jump in &JUMPS {
            self.ensure(flavour, family, jump)?;
        }
        let text = render(&self.services, family, cluster_range(family));
        flavour.restore(self, family, &text)
    }

    fn ensure(&self, flavour: Flavour, family: Family, jump: &Jump) -> Result<()> {
        let command = |action: &'static str| {
            self.program(flavour.tool(family, ""))
                .args(["--wait", "5", "-t", jump.table.name(), action, jump.from])
                .args(jump.rule())
        };
        if command("-C").output()?.status.success() {
            return Ok(());
        }
        command("-I").run().map(|_| ())
    }
}

//! What the kernel labs share: kube-proxy's stand-in on a node, rules to put before its
//! own, and a way to run the backend there.

#![allow(dead_code, unused_imports, reason = "each lab uses a part of it")]

mod answering;
mod beating;
pub(crate) mod two_nodes;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use edgemesh_catalog::Protocol;
use edgemesh_lab::{ClusterService, KubeProxy, KubeProxyMode, Node, Place};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Backend, BackendSetting, Family, Flavour, FlavourSetting, Mark, PortalRule, RuleComment,
    Ruleset,
};

pub(crate) use answering::{Answering, connect_as_agent};
pub(crate) use beating::Beating;

/// Runs `job` in the node's network namespace, on a runtime of its own.
pub(crate) fn on_node<T: Send>(node: &Node, job: impl AsyncFnOnce() -> T + Send) -> Result<T> {
    node.namespace().run(|| -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(job()))
    })?
}

/// A backend of the given flavour.
pub(crate) async fn backend(family: Family, flavour: edgemesh_lab::Flavour) -> Result<Beating> {
    let setting = BackendSetting::Iptables(FlavourSetting::Fixed(ours(flavour)));
    Ok(Beating::keep_open(Backend::open(family, setting).await?))
}

/// A backend that uses nftables.
pub(crate) async fn nftables(family: Family) -> Result<Beating> {
    let backend = Backend::open(family, BackendSetting::Nftables).await?;
    Ok(Beating::keep_open(backend))
}

pub(crate) fn ours(flavour: edgemesh_lab::Flavour) -> Flavour {
    match flavour {
        edgemesh_lab::Flavour::Nft => Flavour::Nft,
        edgemesh_lab::Flavour::Legacy => Flavour::Legacy,
    }
}

pub(crate) fn labs(family: Family) -> edgemesh_lab::Family {
    match family {
        Family::V4 => edgemesh_lab::Family::V4,
        Family::V6 => edgemesh_lab::Family::V6,
    }
}

pub(crate) fn intercept(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([169, 254, 96, 16]),
        Family::V6 => IpAddr::from([0xfd00, 0xed6e, 0x6d65, 0x7368, 0, 0, 0, 1]),
    }
}

pub(crate) fn cluster_ip(family: Family, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([10, 100, high, low]),
        Family::V6 => IpAddr::from([0xfd00, 0x100, 0, 0, 0, 0, 0, number]),
    }
}

/// Rules for so many Services of one port.
pub(crate) fn rules_for(family: Family, services: u16) -> Result<Arc<Ruleset>> {
    let rules = Ruleset::new(intercept(family), 20008, Mark::AGENT);
    let mut rules = rules.forwarding_tcp_at(20007);
    for number in 0..services {
        add(&mut rules, number)?;
    }
    Ok(Arc::new(rules))
}

/// Adds the Service of this number.
pub(crate) fn add(rules: &mut Ruleset, number: u16) -> Result<()> {
    let frontend = Frontend {
        ip: cluster_ip(rules.family(), number),
        protocol: if number % 3 == 2 {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        port: 80,
    };
    let rule = PortalRule {
        comment: RuleComment::new(&format!("default/service-{number}:http")),
        to_port: 20007,
        kernel: None,
    };
    Ok(rules.insert(frontend, rule)?)
}

/// Starts what stands in for kube-proxy, with a few Services of both families.
pub(crate) fn start_kube_proxy(node: &Node, flavour: edgemesh_lab::Flavour) -> Result<KubeProxy> {
    let server = node.pod("server").create()?;
    let web = ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)
        .endpoint(&server);
    let empty = ClusterService::new("default/empty")
        .cluster_ip("10.96.10.5")
        .tcp("http", 80, 8080);
    KubeProxy::start(node, flavour, &[web, empty])
}

/// Every mode of kube-proxy that does NAT.
pub(crate) const KUBE_PROXY_MODES: [KubeProxyMode; 3] = [
    KubeProxyMode::Nftables,
    KubeProxyMode::Iptables(edgemesh_lab::Flavour::Nft),
    KubeProxyMode::Iptables(edgemesh_lab::Flavour::Legacy),
];

/// Takes out what kube-proxy's stand-in does to connections, and all else in those tables.
pub(crate) fn remove_kube_proxy(node: &Node, mode: KubeProxyMode) -> Result<()> {
    for family in node.families() {
        match mode {
            KubeProxyMode::Nftables => {
                let ip = match family {
                    edgemesh_lab::Family::V4 => "ip",
                    edgemesh_lab::Family::V6 => "ip6",
                };
                // One that is not there can't be deleted; now it is.
                let text = format!("add table {ip} kube-proxy\ndelete table {ip} kube-proxy\n");
                node.program("nft").args(["-f", "-"]).input(text).run()?;
            }
            KubeProxyMode::Iptables(flavour) => {
                for what in ["-F", "-X"] {
                    flavour.command(node, *family, ["-t", "nat", what])?;
                }
            }
        }
    }
    Ok(())
}

/// The nat table as iptables-save prints it, but for the times and the counters.
pub(crate) fn nat(node: &Node, flavour: edgemesh_lab::Flavour, family: Family) -> Result<String> {
    let command = flavour.tool(labs(family), "save");
    let text = node.program(command).args(["-t", "nat"]).run()?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => format!("{chain}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect())
}
